"""From text to text: what the tasks of an encoder–decoder have in common.

In: the ids of a source and of its target. Out: the two Sequences of an example, as a model reads them:

    source   ids       x1 … xn </s>          whatever the tokenizer puts around a text
    target   ids       <pad> y1 … ym         what the decoder reads: it begins with the padding token (T5, Marian)
             targets   y1 … ym </s>          what it is to say there
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

import numpy as np

from wenmo.data.sequence import SOURCE, TARGET, Sequence
from wenmo.errors import RecipeError, say
from wenmo.text.tokenizer import Tokenizer


def source_and_target(row: int, source: Ids[int], target: Ids[int], tokenizer: Tokenizer) -> list[Sequence]:
    """An example, from ids without control tokens around them."""
    ids, _ = tokenizer.wrap(source)
    targets = [*target, tokenizer.control["eos"]]
    reads = [tokenizer.control["pad"], *target]
    return [Sequence(row, {"ids": np.asarray(ids)}, role=SOURCE),
            Sequence(row, {"ids": np.asarray(reads), "targets": np.asarray(targets)}, role=TARGET)]


def num_control_tokens(tokenizer: Tokenizer) -> int:
    """How many tokens an example has more than its source and target."""
    return tokenizer.num_wrapping(False) + 1


def refuse_without_ends(tokenizer: Tokenizer) -> None:
    """RecipeError for a tokenizer in which a target has no beginning or no end."""
    missing = [role for role in ("pad", "eos") if role not in tokenizer.control]
    if missing:
        raise RecipeError(
            say(f"an encoder–decoder needs a tokenizer with pad and eos; this one has no {' and no '.join(missing)}",
                f"编码器–解码器需要带 pad 和 eos 词元的分词器；此分词器缺少 {'、'.join(missing)}"),
            where="tokenizer", mend="tokenizer: {train: {type: bpe, seq2seq: true}}")
