"""Inference for many at once: requests come and go at any moment, and share every step of the model.

In: ids and how to continue them. Out: text as it comes. It sees token ids only, and what it writes is what generate/
would write: that is the plain reference beside it.

    request.py    what is asked for, and what comes back
    scheduler.py  who runs in the next step
    slots.py      where keys and values stand, within a budget
    prefix.py     keys and values of beginnings that were read before
    attend.py     attention over them
    packed.py     the weights, packed for the processor or quantised
    runner.py     the model's two kinds of calls: chunks of prompts, the next tokens of many rows
    native.py     the same two as whole native steps (native/), where model and machine allow it
    encoder.py    encoders of texts as native steps
    batcher.py    rows of many callers in one forward
    prompts.py    prompts that are being read
    speculate.py  tokens guessed ahead, by look-up or by a smaller model
    engine.py     schedule → run → settle

The law: on one machine, build and number of threads, a request's greedy tokens do not depend on the others beside it,
on the order of arrival, on being preempted, or on whether its beginning was known. Native steps are built so that a
row's bits are its own. Where torch computes, whatever would change the bits of a number is fixed: a prompt is read in
chunks of one size, padded, and beside other chunks only where a trial found no difference; a product of what is written
has at least so many rows that more of them change nothing, and at most ROWS; keys are padded to a multiple of 32; what
is known of a beginning was made by such chunks; what is only guessed is read by calls of the second kind.
"""

from wenmo.engine.engine import DraftSettings, Engine, EngineSettings
from wenmo.engine.packed import Format, FormatOrAuto, chosen_format
from wenmo.engine.request import Event, Handle, Request

__all__ = ["DraftSettings", "Engine", "EngineSettings", "Event", "Format", "FormatOrAuto", "Handle", "Request",
           "chosen_format"]
