"""What layers do between their products in training, each in one pass over memory (training.h).

In: contiguous tensors on the CPU, bf16 or fp32, and where it is asked for the result's place. Out: the formulas of
nn/, rounded once, where torch's own operations round after each step and read and write the whole each time.

    kernels = kernels_for(gate_MF, up_MF)
    out_MF = F.silu(gate_MF) * up_MF if kernels is None else kernels.gate(gate_MF, up_MF)
"""

from __future__ import annotations

import ctypes
import functools
import logging

import torch
from torch import Tensor

from wenmo.errors import say
from wenmo.native.build import LEAST_WIDTH, Unavailable, library

_log = logging.getLogger(__name__)
FORMATS = (torch.bfloat16, torch.float32)
ALL_IN_SIGHT = 1 << 30


class Kernels:
    """For so many threads, which are torch's own: others would wait for the processor while those wait for work."""

    def __init__(self, num_threads: int) -> None:
        """Raises Unavailable, as `build.library` does, and where torch's threads cannot be borrowed."""
        self.num_threads, self._call = num_threads, library()
        if self._call.register_width() < LEAST_WIDTH:
            raise Unavailable(say("this processor's registers are too narrow to gain by it",
                                  "该处理器的寄存器太窄，没有收益"))
        for make in (self._call.pool_new, self._call.pool_borrowed):
            make.restype = ctypes.c_void_p
        pool = self._call.pool_new(1) if num_threads == 1 else self._call.pool_borrowed(num_threads, _parallel())
        if pool is None:
            raise Unavailable(f"{num_threads} threads")
        self._pool = ctypes.c_void_p(pool)

    def gate(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """silu(gate) · up."""
        out_MF = torch.empty_like(gate_MF)
        self._call.gate_forward(self._pool, *_at(gate_MF, up_MF, out_MF), _long(gate_MF.numel()), _is_bf16(gate_MF))
        return out_MF

    def gate_backward(self, gate_MF: Tensor, up_MF: Tensor, d_out_MF: Tensor) -> tuple[Tensor, Tensor]:
        d_gate_MF, d_up_MF = torch.empty_like(gate_MF), torch.empty_like(up_MF)
        self._call.gate_backward(self._pool, *_at(gate_MF, up_MF, d_out_MF, d_gate_MF, d_up_MF),
                                 _long(gate_MF.numel()), _is_bf16(gate_MF))
        return d_gate_MF, d_up_MF

    def norm(self, x_MD: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """RMSNorm, with an fp32 weight; and 1 / rms of each row, [M]."""
        out_MD, scale_M = torch.empty_like(x_MD), torch.empty(len(x_MD))
        self._call.norm_forward(self._pool, *_at(x_MD, weight_D), ctypes.c_float(epsilon), *_at(out_MD, scale_M),
                                _long(len(x_MD)), x_MD.shape[1], _is_bf16(x_MD))
        return out_MD, scale_M

    def norm_backward(self, x_MD: Tensor, weight_D: Tensor, scale_M: Tensor, d_out_MD: Tensor) -> tuple[Tensor, Tensor]:
        d_x_MD, parts_P2D = torch.empty_like(x_MD), torch.zeros(self.num_threads, 2, x_MD.shape[1])
        self._call.norm_backward(self._pool, *_at(x_MD, weight_D, scale_M, d_out_MD, d_x_MD, parts_P2D),
                                 self.num_threads, _long(len(x_MD)), x_MD.shape[1], _is_bf16(x_MD))
        return d_x_MD, parts_P2D[:, 0].sum(0)

    def rotate(self, x_MNH: Tensor, cos_M1H: Tensor, sin_M1H: Tensor, *, back: bool) -> Tensor:
        """By the angles of nn/rope.py `cos_sin`, or against them."""
        out_MNH = torch.empty_like(x_MNH)
        rows, heads, width = x_MNH.shape
        self._call.rotate_heads(self._pool, *_at(x_MNH, cos_M1H, sin_M1H, out_MNH), _long(rows), heads, width,
                                int(back), _is_bf16(x_MNH))
        return out_MNH

    def cross_entropy_(self, logits_RV: Tensor, targets_R: Tensor, smoothing: float) -> Tensor:
        """-log of the targets' shares, fp32 [R], a target of -100 counting nothing; logits become their gradients."""
        losses_R = torch.empty(len(logits_RV))
        self._call.cross_entropy(self._pool, *_at(logits_RV, targets_R, losses_R), _long(len(logits_RV)),
                                 logits_RV.shape[1], ctypes.c_float(smoothing), _is_bf16(logits_RV))
        return losses_R

    def weigh_keys_(self, scores_XSY: Tensor, sight: Sight) -> Tensor:
        """softmax over S, in place: the keys in sight."""
        self._call.weigh_keys(self._pool, *_at(scores_XSY), *sight.arguments(scores_XSY), _is_bf16(scores_XSY))
        return scores_XSY

    def weigh_keys_backward_(self, d_weights_XSY: Tensor, weights_XSY: Tensor, sight: Sight) -> Tensor:
        """The gradient of the scores, in the place of that of the weights."""
        self._call.weigh_keys_backward(self._pool, *_at(d_weights_XSY, weights_XSY), *sight.arguments(weights_XSY),
                                       _is_bf16(weights_XSY))
        return d_weights_XSY

    def move_heads(self, x_RTNH: Tensor, to_RTNH: Tensor, factor: float) -> None:
        """to = x · factor; the numbers of a head are neighbours on both sides, its strides whatever they are."""
        rows, tokens, heads, width = x_RTNH.shape
        strides = [(ctypes.c_long * 3)(*each.stride()[:3]) for each in (x_RTNH, to_RTNH)]
        x_at, to_at = (ctypes.c_void_p(each.data_ptr()) for each in (x_RTNH, to_RTNH))
        self._call.move_heads(self._pool, x_at, strides[0], to_at, strides[1], _long(rows), tokens, heads, width,
                              ctypes.c_float(factor), _is_bf16(x_RTNH))


class Sight(ctypes.Structure):
    """`Sight` of training.h: which keys a query sees, by their places in a block. `ahead`: the last one that the
    first query sees, counted from the block's first key."""

    _fields_ = [("keys", ctypes.c_int), ("queries", ctypes.c_int), ("ahead", ctypes.c_int), ("window", ctypes.c_int)]

    def arguments(self, scores_XSY: Tensor) -> tuple[object, ...]:
        blocks, keys, together = scores_XSY.shape
        assert keys == self.keys
        return _long(blocks), together // self.queries, ctypes.byref(self)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """None where torch computes: on another device, in another format or several, while compiling, without a C
    compiler."""
    if torch.compiler.is_compiling():
        return None
    if any(each.device.type != "cpu" or each.dtype not in FORMATS or each.dtype != tensors[0].dtype
           for each in tensors):
        return None
    return _kernels(torch.get_num_threads())


@functools.cache
def _kernels(num_threads: int) -> Kernels | None:
    try:
        return Kernels(num_threads)
    except Unavailable as error:
        _log.info(say(f"training is by torch alone: {error}", f"训练仅用 torch 计算：{error}"))
        return None


def _parallel() -> ctypes.c_void_p:
    """GOMP_parallel of the library whose threads torch has, which is among the program's own names."""
    program = ctypes.CDLL(None)
    if not hasattr(program, "GOMP_parallel"):
        raise Unavailable(say("torch's threads are not libgomp's", "torch 的线程不属于 libgomp"))
    return ctypes.cast(program.GOMP_parallel, ctypes.c_void_p)


def _at(*tensors: Tensor) -> tuple[ctypes.c_void_p, ...]:
    assert all(each.is_contiguous() for each in tensors)  # the C code knows no strides
    return tuple(ctypes.c_void_p(each.data_ptr()) for each in tensors)


def _long(number: int) -> ctypes.c_long:
    return ctypes.c_long(number)


def _is_bf16(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)
