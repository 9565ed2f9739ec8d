"""The native products: right within each format's bound, and a row's bits its own."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wenmo.levels import GROUP, Codes, bits_for, eight_bits, eight_bits_in_groups, four_bits
from wenmo.native import build
from wenmo.native.packing import KINDS, Kind, pack_matrix, product

SIZES = [(1, 1), (16, 32), (37, 45), (160, 192), (90, 31), (112, 288), (17, 2)]  # outputs, inputs


@pytest.fixture(scope="module", params=["this processor", "AVX2", "plain C"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The room's library, and its products as lesser processors have them."""
    try:
        compiler = build.find_compiler()
    except build.Unavailable as reason:  # nothing else is skipped: sources that do not compile are a fault
        pytest.skip(str(reason))
    if request.param == "this processor":
        return build.library()
    lesser = ["-mavx2", "-mfma"] if request.param == "AVX2" else []
    if lesser and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no AVX2 on this processor")
    target = tmp_path_factory.mktemp("native") / "lesser.so"
    flags = [flag for flag in build.FLAGS if flag != "-march=native"] + lesser
    subprocess.run([compiler, *flags, str(build.SOURCES / "matrix.c"), "-o", str(target), "-lm"], check=True)
    return ctypes.CDLL(str(target))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(weight_OI: Tensor, kind: Kind) -> Tensor:
    """What the packed matrix stands for, in fp64."""
    known: dict[str, Callable[[], Tensor]] = {
        "fp32": lambda: weight_OI, "bf16": lambda: weight_OI.bfloat16(),
        "int8": lambda: eight_bits(weight_OI).weight(), "int4": lambda: four_bits(weight_OI).weight(),
        "int8-groups": lambda: eight_bits_in_groups(weight_OI).weight()}
    return known[kind]().double()


def largest_code(kind: Kind) -> int:
    """Of rows."""
    return 32767 if kind == "int4" else 127


def rounding(x_MI: Tensor, kind: Kind) -> Tensor:
    """By how much at most `prepare` changes each number."""
    if kind == "fp32":
        return torch.zeros_like(x_MI)
    if kind == "bf16":
        return x_MI.abs() * 2.0**-8
    num_rows, num_inputs = x_MI.shape
    groups_MGX = torch.nn.functional.pad(x_MI, (0, -num_inputs % GROUP)).view(num_rows, -1, GROUP)
    half_steps_MG = groups_MGX.abs().amax(-1) / largest_code(kind) / 2 * 1.0001
    return half_steps_MG.repeat_interleave(GROUP, 1)[:, :num_inputs]


def fits(kind: Kind, num_outputs: int, num_inputs: int) -> bool:
    return kind != "int4" or bits_for(num_outputs, num_inputs, 4) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_products_are_right_within_the_formats_bound(library: ctypes.CDLL, size: tuple[int, int], kind: Kind) -> None:
    if not fits(kind, *size):
        pytest.skip("4 bits have whole groups alone")
    weight_OI, bias_O, x_MI = normal(*size, seed=1), normal(size[0], seed=2), normal(11, size[1], seed=3)
    meant_OI = weight_of(weight_OI, kind)
    found_MO = product(library, pack_matrix(weight_OI, bias_O, kind), x_MI)
    expected_MO = x_MI.double() @ meant_OI.T + bias_O
    magnitude_MO = x_MI.double().abs() @ meant_OI.abs().T + bias_O.abs()
    bound_MO = rounding(x_MI, kind).double() @ meant_OI.abs().T + magnitude_MO * (size[1] + 8) * 2.0**-23
    assert ((found_MO - expected_MO).abs() <= bound_MO).all()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_a_format_has_are_multiplied_as_they_are(library: ctypes.CDLL, kind: Kind) -> None:
    """Rows of whole numbers lose nothing in any format; so each code, scale and minimum is in its place."""
    generator, largest = torch.Generator().manual_seed(0), largest_code(kind)
    weight_OI = normal(64, 96) * (1 + torch.arange(64)[:, None])
    x_MI = torch.randint(-largest, largest + 1, (5, 96), generator=generator).float()
    x_MI[:, ::GROUP] = largest
    found_MO = product(library, pack_matrix(weight_OI, None, kind), x_MI)
    expected_MO = x_MI.double() @ weight_of(weight_OI, kind).T
    torch.testing.assert_close(found_MO.double(), expected_MO, rtol=1e-5, atol=1e-4 * largest)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(size=st.sampled_from(SIZES), num_rows=st.integers(2, 80), together=st.integers(1, 80), parts=st.integers(1, 4))
def test_a_rows_bits_are_its_own(library: ctypes.CDLL, kind: Kind, size: tuple[int, int], num_rows: int, together: int,
                                 parts: int) -> None:
    """However many rows are beside it, and however the outputs are shared out (to threads)."""
    if not fits(kind, *size):
        return
    matrix, x_MI = pack_matrix(normal(*size), normal(size[0]), kind), normal(num_rows, size[1])
    alone = torch.cat([product(library, matrix, row) for row in torch.split(x_MI, 1)])
    among = torch.cat([product(library, matrix, rows, parts=parts) for rows in torch.split(x_MI, together)])
    assert torch.equal(alone, among)


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_together_have_the_bits_of_one(library: ctypes.CDLL, kind: Kind) -> None:
    matrix, x_MI = pack_matrix(normal(192, 576), None, kind), normal(80, 576)
    all_rows = product(library, matrix, x_MI)
    for count in (1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33):
        assert torch.equal(product(library, matrix, x_MI[-count:], parts=2), all_rows[-count:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_says_so_and_harms_no_other(library: ctypes.CDLL, kind: Kind, fault: float) -> None:
    matrix, x_MI = pack_matrix(normal(48, 64), None, kind), normal(9, 64)
    expected_MO = product(library, matrix, x_MI)
    x_MI[4, 40] = fault
    found_MO = product(library, matrix, x_MI)
    assert not found_MO[4].isfinite().any()
    assert torch.equal(found_MO[[0, 1, 2, 3, 5, 6, 7, 8]], expected_MO[[0, 1, 2, 3, 5, 6, 7, 8]])


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_give_the_bias_and_sizes_of_numbers_do_not_matter(library: ctypes.CDLL, kind: Kind) -> None:
    weight_OI, bias_O = normal(40 if kind != "int4" else 48, 64), normal(40 if kind != "int4" else 48)
    assert torch.equal(product(library, pack_matrix(weight_OI, bias_O, kind), torch.zeros(3, 64)),
                       bias_O.expand(3, -1))
    matrix, x_MI = pack_matrix(weight_OI, None, kind), normal(3, 64)
    expected_MO = product(library, matrix, x_MI)
    for power in (-60, 60):
        found_MO = product(library, matrix, x_MI * 2.0**power)
        torch.testing.assert_close(found_MO * 2.0**-power, expected_MO, rtol=1e-5, atol=1e-5)


QUANTISERS = {"int4": four_bits, "int8": eight_bits, "int8-groups": eight_bits_in_groups}


@pytest.mark.parametrize("kind", QUANTISERS)
def test_stored_codes_are_used_as_they_are(library: ctypes.CDLL, kind: Kind) -> None:
    weight_OI, x_MI = normal(48, 96), normal(3, 96)
    codes: Codes = QUANTISERS[kind](weight_OI)
    moved = Codes((codes.numbers + 1).clamp(max=7), codes.grid)  # not what would be chosen for these weights
    found_MO = product(library, pack_matrix(moved, None, kind), x_MI)
    assert torch.equal(product(library, pack_matrix(codes, None, kind), x_MI),
                       product(library, pack_matrix(weight_OI, None, kind), x_MI))
    expected_MO = x_MI @ moved.weight().T
    assert (found_MO - expected_MO).norm() < 0.01 * expected_MO.norm()


def test_the_kinds_take_the_room_they_promise() -> None:
    weight_OI = normal(96, 64)
    sizes = {kind: pack_matrix(weight_OI, None, kind).num_bytes / weight_OI.numel() for kind in KINDS}
    assert sizes == {"fp32": 4, "bf16": 2, "int8": 1 + 4 / 64, "int4": 0.5 + 4 / GROUP,
                     "int8-groups": 1 + 2 / GROUP}
