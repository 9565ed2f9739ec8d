"""ModelDir: the Hugging Face folder plus `wenmo.json`; open and save.

In: a reference to a model (see locate.py). Out: `Opened`: model, tokenizer, and the card that says what the model is
for and where it came from. What is saved opens in transformers with no missing and no unexpected key.

    opened.py     the model in memory, its digest
    names.py      files, parts of the card; our names and Hugging Face's
    files.py      path → configuration, tensors, tokenizer, card
    opening.py    those → a model
    adapted.py    an adapter put on a model, merged into it
    saving.py     a model → its folder
"""

from wenmo.modeldir.adapted import adapt, merge
from wenmo.modeldir.files import base_below
from wenmo.modeldir.names import CARD, QUANTIZATION
from wenmo.modeldir.opened import Opened, versions, weights_sha256
from wenmo.modeldir.opening import check_vocabulary, exact_base, open_model, open_tokenizer
from wenmo.modeldir.saving import mark_quantized, save_model, saved_tensors, write_into

__all__ = ["CARD", "QUANTIZATION", "Opened", "adapt", "base_below", "check_vocabulary", "exact_base", "mark_quantized",
           "merge", "open_model", "open_tokenizer", "save_model", "saved_tensors", "versions", "weights_sha256",
           "write_into"]
