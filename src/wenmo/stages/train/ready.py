"""What stands when a run is ready for its first step. The files beside this one look at it; none of them replaces any
of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenmo.device import Device
from wenmo.modeldir import Opened
from wenmo.recipe import Recipe
from wenmo.stages.prepare import Rows
from wenmo.tasks import Task
from wenmo.training.processes import Processes
from wenmo.training.run import Run


@dataclass(frozen=True)
class Ready:
    """`opened` has the model on its device, and the card as far as it is known before training."""

    recipe: Recipe
    run: Run
    on: Device
    processes: Processes
    task: Task
    opened: Opened
    rows: Rows

    @property
    def model(self) -> Any:
        """The whole model: what is evaluated and saved."""
        return self.opened.model

    @property
    def best_folder(self) -> Path:
        """Where the best weights lie until the run ends, in a model folder."""
        return self.run.folder / "best"
