"""`wenmo train`: a recipe → a Run with its model. The same command begins, and resumes.

Open the sources, lock the run, read the rows, make tokenizer, task and model, then step after step: log, evaluate,
keep the best, save. Killed at any moment, the same command goes on from the last checkpoint to the same weights.

    beginning.py   `train` itself: everything that comes before the first step, undone where it fails
    ready.py       what then stands, and all below look at
    card.py        wenmo.json: what the model is for, and where it came from
    weights.py     what the steps change: whole or in parts, with their average; saved and brought back
    choosing.py    an evaluation in between: the metrics, samples, the best weights so far
    costs.py       the forecast, and what the run has cost
    running.py     the steps, from where the last checkpoint leaves off
    ending.py      the best weights → the model's folder
    trained.py     what the caller is given
"""

from wenmo.stages.train.beginning import train
from wenmo.stages.train.trained import Trained

__all__ = ["Trained", "train"]
