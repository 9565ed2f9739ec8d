"""The rate at every step, and which runs may be made longer."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenmo.config import Settings, parse, parse_yaml, to_yaml
from wenmo.errors import CheckpointError, RecipeError
from wenmo.training.schedule import (
    ConstantSchedule,
    CosineSchedule,
    InverseSqrtSchedule,
    LinearSchedule,
    PolynomialSchedule,
    Rates,
    ScheduleSettings,
    WsdSchedule,
    lr_factor,
    refuse_other_past,
    warmup_steps,
)


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


class Holder(Settings):
    schedule: ScheduleSettings = CosineSchedule()


def parsed(text: str) -> ScheduleSettings:
    return parse(Holder, {"schedule": parse_yaml(text, "recipe")}, "recipe").schedule


lengths = st.integers(0, 50) | st.floats(0, 0.5)
some_floors = st.floats(0, 1)
schedules = st.one_of(
    st.builds(ConstantSchedule, warmup=lengths), st.builds(InverseSqrtSchedule, warmup=lengths),
    st.builds(LinearSchedule, warmup=lengths, floor=some_floors),
    st.builds(CosineSchedule, warmup=lengths, floor=some_floors),
    st.builds(PolynomialSchedule, warmup=lengths, floor=some_floors, power=st.floats(0.5, 3)),
    st.builds(WsdSchedule, warmup=lengths, floor=some_floors, decay=st.integers(1, 50) | st.floats(0.01, 0.5),
              form=st.sampled_from(["linear", "cosine", "1-sqrt"])))


@given(schedules, st.integers(100, 400))
def test_the_rate_climbs_to_one_then_falls_to_the_floor(settings: ScheduleSettings, total: int) -> None:
    factors = [lr_factor(settings, step, total) for step in range(total + 1)]
    warmup = warmup_steps(settings, total)
    assert all(0 < factor <= 1 for factor in factors[:total])
    climb, fall = factors[: warmup + 1], factors[warmup:]
    assert climb == sorted(climb)
    assert fall == sorted(fall, reverse=True)
    assert factors[warmup] == 1
    if warmup > 0:
        assert factors[0] < 1
        assert all(b - a == pytest.approx(1 / (warmup + 1)) for a, b in pairwise(climb))
    if isinstance(settings, ConstantSchedule):
        assert set(fall) == {1.0}
    elif not isinstance(settings, InverseSqrtSchedule) and fall[0] > fall[-1]:
        assert factors[total] == pytest.approx(settings.floor, abs=1e-7)


def test_each_schedule_by_hand() -> None:
    def at(settings: ScheduleSettings, *steps: int) -> list[float]:
        return [lr_factor(settings, step, 12) for step in steps]

    assert at(LinearSchedule(warmup=4, floor=0.2), 0, 3, 4, 8, 12) == pytest.approx([0.2, 0.8, 1.0, 0.6, 0.2])
    assert at(CosineSchedule(warmup=4, floor=0.2), 6, 8) == pytest.approx([0.2 + 0.4 * (1 + 0.5**0.5), 0.6])
    assert at(PolynomialSchedule(warmup=4, power=3), 4, 6, 8) == pytest.approx([1, 0.75**3, 0.5**3])
    # Vaswani et al. 2017, §5.3: step^-0.5 after the warm-up, as a share of its highest value
    assert at(InverseSqrtSchedule(warmup=3), 3, 8, 11) == pytest.approx([1, (4 / 9) ** 0.5, (4 / 12) ** 0.5])


def test_wsd_stands_then_decays_in_each_form() -> None:
    expected = {"linear": 0.5, "cosine": 0.5, "1-sqrt": 1 - 0.5**0.5}
    for form, half in expected.items():
        settings = WsdSchedule(warmup=2, decay="20%", floor=0.1, form=form)
        assert [lr_factor(settings, step, 20) for step in range(2, 17)] == [1.0] * 15
        assert lr_factor(settings, 18, 20) == pytest.approx(0.1 + 0.9 * half)
        assert lr_factor(settings, 20, 20) == pytest.approx(0.1)
        by_steps = WsdSchedule(warmup=2, decay="4 steps", floor=0.1, form=form)
        assert all(lr_factor(settings, step, 20) == lr_factor(by_steps, step, 20) for step in range(20))


@pytest.mark.parametrize(
    ("written", "meant"),
    [("6%", 0.06), ("0.06", 0.06), ("100%", 1.0), ("200", 200), ("2e2", 200), ("200 steps", 200), ("1 步", 1)],
)
def test_warmup_is_a_share_or_a_number_of_steps(written: str, meant: float) -> None:
    settings = parsed(f"warmup: {written}")
    assert settings.warmup == meant
    assert type(settings.warmup) is type(meant)
    assert parsed(to_yaml(settings)) == settings


@pytest.mark.parametrize("warmup", ["-1", "1.5", "120%", "soon", "nan", "true"])
def test_a_warmup_that_is_neither_is_refused(warmup: str) -> None:
    with pytest.raises(RecipeError, match="warmup"):
        parsed(f"warmup: {warmup}")


@pytest.mark.parametrize(("text", "fault"), [
    ("{type: constant, floor: 0.1}", "floor"), ("{type: cosine, decay: 0.1}", "belongs to wsd"),
    ("{type: wsd, decay: 0}", "type: constant"), ("{type: wsd, warmup: 50%, decay: 60%}", "longer than the run"),
    ("{type: cosin}", "did you mean `cosine`"), ("{type: inverse_sqrt, floor: 0.1}", "floor")])
def test_keys_that_would_do_nothing_are_refused(text: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(text)
    assert fault in str(caught.value)


@pytest.mark.parametrize(("settings", "fault"), [
    (CosineSchedule(warmup=100), "warm-up takes 100 steps"), (WsdSchedule(decay=100), "decay takes 100 steps"),
    (WsdSchedule(warmup=20, decay=20), "warm-up .20 steps. and decay .20.")])
def test_a_run_that_is_too_short_is_refused(settings: ScheduleSettings, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        lr_factor(settings, 0, 30)


# Longer runs ------------------------------------------------------------------------------------------

CONSTANT, WSD = ConstantSchedule(warmup=5), WsdSchedule(warmup=5, decay="20%")


@pytest.mark.parametrize(("before", "after", "done"), [
    (Rates(schedule=CONSTANT, total_steps=50), Rates(schedule=CONSTANT, total_steps=80), 50),
    (Rates(schedule=CONSTANT, total_steps=50), Rates(schedule=WSD, total_steps=60), 48),  # a decay after all
    (Rates(schedule=WSD, total_steps=50), Rates(schedule=WSD, total_steps=200), 41),
    (Rates(schedule=CosineSchedule(), total_steps=50), Rates(schedule=CONSTANT, total_steps=80), 0),
    (Rates(schedule=InverseSqrtSchedule(warmup=5), total_steps=50),
     Rates(schedule=InverseSqrtSchedule(warmup=5), total_steps=51), 50)])
def test_a_run_may_change_where_its_past_does_not(before: Rates, after: Rates, done: int) -> None:
    refuse_other_past(before, after, done, "here")
    assert [before.factor(n) for n in range(done)] == [after.factor(n) for n in range(done)]


@pytest.mark.parametrize(("before", "after", "done", "fault"), [
    (Rates(schedule=WSD, total_steps=50), Rates(schedule=WSD, total_steps=60), 42, "step 42 of the 42 done"),
    (Rates(schedule=CosineSchedule(), total_steps=50), Rates(schedule=CosineSchedule(), total_steps=51), 10,
     "train.steps: 50 → 51"),
    (Rates(schedule=ConstantSchedule(), total_steps=50), Rates(schedule=ConstantSchedule(), total_steps=100), 10,
     "step 1 of the 10 done had 0.25 of the rate"),  # the warm-up is a share
    (Rates(schedule=CONSTANT, total_steps=50), Rates(schedule=CONSTANT, total_steps=20), 30, "30 steps are done")])
def test_another_past_is_refused_and_shown(before: Rates, after: Rates, done: int, fault: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        refuse_other_past(before, after, done, "here")
    assert fault in str(caught.value)
