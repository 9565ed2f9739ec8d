"""`wenmo merge`: an adapter and its base → one whole model, which computes the same.

The golden prompts are asked three times: are they answered as when the adapter was saved, by the adapter, by the merged
model in memory, and by the folder that was written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wenmo import golden
from wenmo.errors import ModelError, say
from wenmo.locate import locate
from wenmo.modeldir import CARD, Opened, merge, open_model, save_model
from wenmo.models import CustomHeads
from wenmo.stages.out_folder import refuse_other_things

_log = logging.getLogger(__name__)


def merge_into(reference: str, out: Path, heads: CustomHeads | None = None) -> dict[str, Any]:
    """Writes OUT and says what is in it: {"model", "adapter", "base", "parameters", "largest_difference"}.

    ModelError where the reference is no adapter, or where the merged model answers the golden prompts differently.
    """
    opened = open_model(reference, custom=heads)
    if opened.adapter is None or opened.base is None:
        raise ModelError(say("this is no adapter: there is nothing to merge", "这不是适配器：没有可合并的内容"),
                         where=reference, mend=say("it is a whole model already, and can be used as it is",
                                                   "它已是完整的模型，可直接使用"))
    base = opened.base
    refuse_other_things(out, CARD, "config.json", read=(locate(reference), base.path))
    before = _difference(opened, reference)
    merge(opened)
    differences = [before, _difference(opened, reference)]
    opened.card["lineage"] = {**opened.card.get("lineage", {}),
                              "merged": {"reference": base.reference, "sha256": base.sha256}}
    save_model(out, opened)
    differences.append(_difference(open_model(str(out), custom=heads), str(out)))
    known = [difference for difference in differences if difference is not None]
    if not known:
        _log.warning(say("the adapter has no golden prompts, so the merged model was not held against it",
                         "适配器没有黄金提示，因此未核对合并后的模型"))
    return {"model": str(out), "adapter": reference, "base": base.reference,
            "parameters": sum(parameter.numel() for parameter in opened.model.parameters()),
            "largest_difference": max(known) if known else None}


def _difference(opened: Opened, where: str) -> float | None:
    """The largest difference to the recorded answers; None where none are recorded."""
    entries = opened.card.get("golden")
    if not entries or opened.tokenizer is None:
        return None
    return golden.check(opened.model, opened.tokenizer, entries, where)
