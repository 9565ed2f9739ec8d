"""Rounding with compensation: GPTQ (Frantar et al. 2022, Algorithm 1).

In: a matrix, what its inputs are like, and a grid of levels. Out: codes for which the matrix's *outputs* change
little, rather than its weights. Column after column is rounded, and what that does to the outputs is made good, as far
as it goes, by the columns that are still free: they take off err_j · [H⁻¹]_jk / [H⁻¹]_jj, with H = Σ x xᵀ over the
inputs. The rows of the Cholesky factor of H⁻¹ hold these quotients for all columns at once (§3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wenmo.levels import Codes, Grid

DAMPING = 0.01  # of H's mean diagonal, added to it: what calibration has seen little of must not blow up
BLOCK = 128  # columns; what a block does to those behind it is done in one product


def error_compensated(weight_OI: Tensor, hessian_II: Tensor, grid: Grid, damping: float = DAMPING) -> Codes:
    """Codes by GPTQ. Columns with the largest inputs come first, while there is most to compensate with ("act-order");
    the grid is given, so that codes keep their places. Inputs that never occurred are no matter."""
    num_outputs, num_inputs = weight_OI.shape
    hessian_II = hessian_II.double().clone()
    diagonal_I = hessian_II.diagonal()
    diagonal_I[diagonal_I == 0] = 1.0
    order_I = diagonal_I.argsort(descending=True, stable=True)
    diagonal_I += damping * diagonal_I.mean()
    quotients_II = _quotients(hessian_II[order_I][:, order_I])
    left_OI = weight_OI.float()[:, order_I]
    group_I = (torch.arange(num_inputs) // (num_inputs // grid.scales.shape[1]))[order_I]
    codes_OI = torch.empty(num_outputs, num_inputs, dtype=torch.int8)
    for start in range(0, num_inputs, BLOCK):
        end = min(start + BLOCK, num_inputs)
        errors = torch.empty(num_outputs, end - start)
        for column in range(start, end):
            group = group_I[column : column + 1]
            weight_O1 = left_OI[:, column : column + 1]
            codes_O1 = grid.round(weight_O1, group)
            codes_OI[:, order_I[column]] = codes_O1[:, 0].to(torch.int8)
            error_O1 = (weight_O1 - grid.level(codes_O1, group)) / quotients_II[column, column]
            left_OI[:, column:end] -= error_O1 * quotients_II[column, column:end]
            errors[:, column - start] = error_O1[:, 0]
        left_OI[:, end:] -= errors @ quotients_II[start:end, end:]
    return Codes(codes_OI, grid)


def _quotients(hessian_II: Tensor) -> Tensor:
    """The upper Cholesky factor of H⁻¹, in fp32."""
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(hessian_II))
    upper_II: Tensor = torch.linalg.cholesky(inverse_II, upper=True)
    return upper_II.float()
