"""Threads and memory as the system gives them."""

from __future__ import annotations

import threading

import pytest
import torch

from wenmo import device


def test_one_thread_is_this_thread_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if device._openmp() is None:
            pytest.skip("torch's OpenMP is not among the program's functions here")
        elsewhere: list[int] = []
        with device.one_thread():
            assert torch.get_num_threads() == 1
            other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
            other.start()
            other.join()
        assert elsewhere == [2]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), device.one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("num_bytes", [0, 1, 5 << 20])
def test_large_pages_are_zeros_to_write_into(num_bytes: int) -> None:
    memory = device.large_pages(num_bytes)
    assert memory.shape == (num_bytes,)
    assert not memory.any()
    part = memory[num_bytes // 2 :].fill_(7)
    del memory  # the part keeps it
    assert part.eq(7).all()
