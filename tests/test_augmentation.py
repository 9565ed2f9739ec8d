"""Augmentation: texts that change as asked, anew in each epoch, and the same whenever they are asked for again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small_data
from wenmo.config import parse
from wenmo.data.augmentation import Augmentation, Augmented, AugmentSettings
from wenmo.data.sequence import Sequence
from wenmo.device import numpy_rng
from wenmo.errors import DataError, RecipeError
from wenmo.files import read_jsonl
from wenmo.stages.library import train
from wenmo.text.pinyin import homophones
from wenmo.text.words import split_words

ZH = "这家酒店的房间很干净，服务员态度非常好，下次出差还会再来住。"
EN = "The room was clean and quiet, the staff were friendly, and breakfast started early enough."
TEXTS = [ZH, EN, "酒店的位置不太好，离车站很远。", "Breakfast was cold and the staff were rude.", "房间小，价格贵。"]
WAYS = ("delete", "swap", "span", "insert", "replace", "typo", "homophone")


def augmentation(**rates: float) -> Augmentation:
    return Augmentation(AugmentSettings(share=1.0, **rates), TEXTS)


def variants(text: str, number: int = 40, **rates: float) -> list[str]:
    changes = augmentation(**rates)
    return [changes.change(text, numpy_rng("test", i)) for i in range(number)]


def words(text: str) -> list[str]:
    return [word for word in split_words(text) if word[0].isalnum()]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_changes_what_it_can(way: str) -> None:
    for text, can in ((ZH, way != "typo"), (EN, way != "homophone")):
        found = variants(text, **{way: 0.2})
        assert (len(set(found)) > 3) is can
        assert (set(found) == {text}) is not can
        assert found == variants(text, **{way: 0.2})  # a pure function of its keys


def test_what_each_way_does() -> None:
    """In characters without spaces: what is left of a Chinese text may be cut into other words."""
    for text in (ZH, EN):
        whole = bare(text)
        for found in map(bare, variants(text, delete=0.3)):
            assert 0 < len(found) < len(whole)
            assert in_order(found, whole)
        for found in map(bare, variants(text, span=0.3)):
            gone = len(whole) - len(found)
            assert any(found == whole[:i] + whole[i + gone :] for i in range(len(whole))), "one run is gone"
        for found in map(bare, variants(text, insert=0.3)):
            added = Counter(found) - Counter(whole)
            assert in_order(whole, found)
            assert 1 <= sum(added.values()) <= max(1, round(0.3 * len(words(text))))
            assert set(added) <= set("，。；：？！" if text == ZH else ",.;:?!")
        assert all(Counter(bare(found)) == Counter(whole) for found in variants(text, swap=0.2))
    assert not any("  " in found for found in variants(EN, delete=0.3, span=0.2))


def bare(text: str) -> str:
    return text.replace(" ", "")


def in_order(part: str, whole: str) -> bool:
    """Whether the one is what is left of the other."""
    rest = iter(whole)
    return all(character in rest for character in part)


def test_homophones_sound_alike() -> None:
    alike = homophones(["他她它是事", "市"])
    assert {"".join(sorted(each + others)) for each, others in alike.items()} == {"他她它", "事市是"}
    assert all(each not in others for each, others in alike.items())
    table = homophones(TEXTS)
    for found in variants(ZH, homophone=0.3):
        assert len(found) == len(ZH)
        assert all(new == old or new in table[old] for old, new in zip(ZH, found, strict=True))


def test_rates_are_kept_on_average() -> None:
    deleted = [1 - len(words(found)) / len(words(EN)) for found in variants(EN, 400, delete=0.2)]
    assert np.mean(deleted) == pytest.approx(0.2, abs=0.04)  # a little more: one that deletes nothing is no change
    replaced = [np.mean([a != b for a, b in zip(words(EN), words(found), strict=True)])
                for found in variants(EN, 400, replace=0.2)]
    assert 0.1 < np.mean(replaced) < 0.3


def test_the_weightiest_word_stays() -> None:
    """UDA: what is rare in the training texts is not replaced, what is everywhere is."""
    texts = [f"the food in the place was {word} and the bill was small" for word in ("splendid", "awful")] * 20
    changes = Augmentation(AugmentSettings(share=1.0, replace=0.5), texts)
    text = texts[0].replace("splendid", "splendid splendid")
    found = [words(changes.change(text, numpy_rng(i))) for i in range(50)]
    assert all(each.count("splendid") >= 2 for each in found)
    assert any(each.count("the") < 3 for each in found)


def test_short_texts_stay() -> None:
    assert set(variants("非常好！", delete=0.5, span=0.5, homophone=1.0)) == {"非常好！"}
    assert set(variants("so bad", delete=0.5, typo=1.0)) == {"so bad"}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(WAYS), st.floats(0.01, 1), st.integers(0, 9))
def test_any_text_stays_a_text(text: str, way: str, rate: float, seed: int) -> None:
    found = Augmentation(AugmentSettings(**{way: rate}), [ZH, text]).change(text, np.random.default_rng(seed))
    assert found or not text
    assert not words(text) or words(found)


# Examples ---------------------------------------------------------------------------------------------


def encode(number: int, row: Any) -> list[Sequence]:
    """A sequence for every twenty characters; no text of more than eighty."""
    text = row["text"]
    if len(text) > 80:
        raise DataError("too long")
    ids = np.array([ord(character) for character in text])
    return [Sequence(number, {"ids": part}, {"label": row["label"]}) for part in np.split(ids, range(20, len(ids), 20))]


ROWS = [{"text": ZH * 2, "label": 0}, {"text": "short", "label": 1}, {"text": EN[:80], "label": 2}]


def examples(share: float = 1.0, **rates: float) -> Augmented:
    made = AugmentSettings(share=share, **(rates or {"delete": 0.3}))
    return Augmented(ROWS, ("text",), encode, Augmentation(made, [row["text"] for row in ROWS]), seed=5)


def read(found: Augmented, epoch: int) -> list[tuple[int, int, str]]:
    result = []
    for index, length in enumerate(found.lengths(epoch)):
        [sequence] = found.sequences(index, epoch)
        assert len(sequence) == length
        result.append((sequence.row, sequence.values["label"], "".join(map(chr, sequence.tokens["ids"]))))
    return result


def test_an_epoch_is_a_function_of_its_number() -> None:
    first = [read(examples(), epoch) for epoch in range(3)]
    one = examples()
    assert [read(one, epoch) for epoch in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert len({str(epoch) for epoch in first}) == 3
    for epoch in first:
        assert {(row, label) for row, label, _ in epoch} == {(0, 0), (1, 1), (2, 2)}
        assert [row for row, _, _ in epoch] == sorted(row for row, _, _ in epoch)
    lengths = {len(epoch) for epoch in first}
    assert max(lengths) <= sum(-(-len(row["text"]) // 20) for row in ROWS)


def test_the_share_that_is_changed() -> None:
    half = examples(0.5, delete=0.5)
    whole = ["".join(text for row, _, text in read(half, epoch) if row == 0) for epoch in range(60)]
    assert 15 < whole.count(ZH * 2) < 45


def test_what_the_task_refuses_is_read_as_it_is() -> None:
    texts = {"".join(text for row, _, text in read(examples(1.0, insert=1.0), epoch) if row == 2) for epoch in range(9)}
    assert EN[:80] in texts


# In a run ---------------------------------------------------------------------------------------------


def test_a_run_learns_from_changed_texts_and_resumes(tmp_path: Path) -> None:
    small_data.write(tmp_path / "data", 60, 20)
    recipe = small_data.recipe("classification", steps=6, batch_tokens=256, log_every=1, threads=1)
    change = ("data.augment={share: 100%, delete: 30%, homophone: 30%}", "train.schedule={type: constant}")

    def run(name: str, *overrides: str) -> list[float]:
        train(recipe, *overrides, out=tmp_path / name, data_root=tmp_path / "data")
        return [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if "loss" in row]

    assert run("plain", change[1]) != (whole := run("whole", *change))
    assert run("part", *change, "train.steps=3") == whole[:3]
    assert run("part", *change) == whole


@pytest.mark.parametrize("data", [{}, {"share": 0, "delete": 0.1}, {"delete": 2}, {"remove": 0.1}])
def test_settings_that_do_nothing_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        parse(AugmentSettings, data, "here")


def test_a_task_whose_answers_stand_in_the_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.augment.* does nothing here"):
        train(small_data.recipe("masked_lm", steps=1), "data.augment={delete: 0.1}", out=tmp_path)
