"""The first values of parameters, where an architecture has no rule of its own for each kind of matrix."""

from __future__ import annotations

import torch
from torch import nn


def initialise_normal(module: nn.Module, deviation: float, generator: torch.Generator) -> None:
    """Matrices from Normal(0, deviation), biases at zero, the weights of norms (`…norm.weight`) at one: as in the code
    released with Devlin et al. 2019.
    """
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(1.0 if name.lower().endswith("norm.weight") else 0.0)
