"""What training and evaluation need before they start: rows, tokenizer, task, model, examples.

In: a Recipe, or a path on the command line. Out: rows with their counts (printed, and adding up), a tokenizer, a model
on its device, the examples that training reads.

    rows.py       rows to learn from and to choose by; the file and line of a faulty one
    corpus.py     a recipe's files → rows to learn from and to choose by, folds
    given.py      a path on the command line → what a task reads of it
    facts.py      what a run notes of what it was made from: hashes, how the data was read
    model.py      recipe → tokenizer, task, model
    examples.py   rows → the mixed examples of all sources
"""

from wenmo.stages.prepare.corpus import Corpus
from wenmo.stages.prepare.examples import examples_for, print_built
from wenmo.stages.prepare.facts import model_facts, normalization_card, run_facts, source_card
from wenmo.stages.prepare.given import columns_in, rows_to_measure
from wenmo.stages.prepare.model import model_for, place_on, refuse_misfit, start_of, task_for, tokenizer_for
from wenmo.stages.prepare.rows import Rows, place_fault, placed, values_of

__all__ = ["Corpus", "Rows", "columns_in", "examples_for", "model_facts", "model_for",
           "normalization_card", "place_fault", "place_on", "placed", "print_built", "refuse_misfit",
           "rows_to_measure", "run_facts", "source_card", "start_of", "task_for", "tokenizer_for", "values_of"]
