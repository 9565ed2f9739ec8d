"""What `wenmo.load` returns: the only way by which predict, evaluate, the command line and a server reach a model.

In: a reference to a model. Out: `Loaded`, with the same verbs for every family: predict, generate, embed, score.

    held.py        the model with its tasks; rows read, and run in batches
    answers.py     rows → the task's answers
    vectors.py     texts → vectors
    text_out.py    prompts, conversations → text
"""

from __future__ import annotations

from pathlib import Path

from wenmo import device as machine
from wenmo.loaded.answers import Answered, Answers, Asked, decoded
from wenmo.loaded.held import BATCH_TOKENS
from wenmo.loaded.text_out import TextOut
from wenmo.loaded.vectors import Vectors
from wenmo.modeldir import open_model
from wenmo.models import CustomHeads
from wenmo.tasks import CustomTasks


class Loaded(Answers, Vectors, TextOut):
    """A model ready to answer. `task` is what it was trained for; a bare language model has language modelling."""


def load(reference: str | Path, *, device: str = "auto", dtype: machine.DType = "fp32", threads: int | None = None,
         tasks: CustomTasks | None = None, heads: CustomHeads | None = None, base: Loaded | None = None) -> Loaded:
    """Opens a model by its reference (folder, Run, .gguf, hf:org/name, ms:org/name, pkg:NAME). Raises ModelError.

    fp32 by default: the scores are then those of the stored weights; bf16 is faster where the processor has it.
    `tasks` and `heads`: those of your own that the model was trained with (docs/extend.md). base: of an adapter, the
    model below it if that is loaded already; the two then share its tensors (not with DoRA or adapted embeddings).
    """
    opened = open_model(str(reference), custom=heads)
    return Loaded(opened, machine.choose(device, dtype, threads), str(reference), tasks, base)


__all__ = ["BATCH_TOKENS", "Answered", "Asked", "Loaded", "decoded", "load"]
