"""Tasks of three parts: none has a prompt of another, and the training part is what it is without a test part."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.runs.build import find_recipe, load_task, resolve
from relgrad.runs.recipe import load_recipe
from relgrad.tasks import Task

THREE_PARTS = {
    "digits": {"train_size": 300, "held_out_size": 50},
    "next_number": {},
    "puzzles": {"train_size": 300, "held_out_size": 50},
    "forms": {"train_size": 300, "held_out_size": 50},
    "masked_text": {"train_size": 300, "held_out_size": 50, "length": 64},
    "reasoning_gym": {"task": "chain_sum", "train_size": 300, "held_out_size": 50},
}
"""The generated kinds, with settings."""


def load(kind: str, seed: int = 0, **settings: Any) -> Task:
    if kind == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    module = registry.find("tasks", kind)
    return module.load(module.Settings.model_validate(settings), seed)


def texts(prompts: Iterable[Prompt]) -> list[str]:
    return [p.text for p in prompts]


def whole(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompts[i] for i in range(len(prompts))]


def assert_disjoint(task: Task) -> None:
    parts = [set(texts(whole(part))) for part in (task.train, task.validation, task.test)]
    for one, other in itertools.combinations(parts, 2):
        assert not one & other


# ---------------------------------------------------------------- generated tasks


@pytest.mark.parametrize("kind", THREE_PARTS)
def test_generated_tasks_have_three_parts_that_share_no_prompt(kind: str) -> None:
    for seed in (0, 1):
        task = load(kind, seed, **THREE_PARTS[kind])
        assert not task.two_parts
        assert len(task.test) == len(task.validation)
        assert_disjoint(task)
        assert load(kind, seed, **THREE_PARTS[kind]) == task or kind in ("forms", "masked_text")  # made on demand


@pytest.mark.parametrize("kind", [kind for kind in THREE_PARTS if kind != "next_number"])
def test_the_size_of_the_test_part_is_a_setting_of_its_own(kind: str) -> None:
    settings = THREE_PARTS[kind]
    default, larger, none = (load(kind, **settings, **size) for size in ({}, {"test_size": 70}, {"test_size": 0}))
    assert [len(task.test) for task in (default, larger)] == [50, 70]
    assert none.two_parts
    assert none.test is none.validation
    assert texts(default.test) == texts(larger.test)[:50]
    for task in (larger, none):
        assert texts(whole(task.train)) == texts(whole(default.train))
    if kind != "masked_text":  # whose validation part is longer where there is no test part
        assert texts(none.validation) == texts(default.validation) == texts(larger.validation)


@pytest.mark.parametrize("kind", ["forms", "masked_text"])
def test_what_is_judged_by_is_the_same_for_every_seed(kind: str) -> None:
    one, other = (load(kind, seed, **THREE_PARTS[kind]) for seed in (0, 1))
    assert texts(one.validation) == texts(other.validation)
    assert texts(one.test) == texts(other.test)
    assert texts(whole(one.train)) != texts(whole(other.train))


GOLDEN = {
    ("digits", "{}"): "f548dc8796ef",
    ("next_number", "{}"): "e43b45ab108f",
    ("forms", '{"train_size": 300}'): "e3acb4dbf0de",
    ("forms", '{"train_size": 300, "held_out": "test"}'): "e3acb4dbf0de",
}
"""Digests of the training texts, which recorded results are about."""


@pytest.mark.parametrize(("kind", "settings"), GOLDEN)
def test_a_test_part_changes_nothing_in_training(kind: str, settings: str) -> None:
    train = whole(load(kind, 0, **json.loads(settings)).train)
    assert hashlib.sha256("\n".join(texts(train)).encode()).hexdigest()[:12] == GOLDEN[kind, settings]


def test_digits_take_as_many_as_are_left() -> None:
    task = load("digits", length=2, train_size=60, held_out_size=30)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [60, 30, 10]
    assert sorted(texts([*task.train, *task.validation, *task.test])) == [f"{i:02d}=" for i in range(100)]
    assert load("digits", length=2, train_size=60, held_out_size=40).two_parts
    with pytest.raises(ValueError, match=r"test_size = 101, but there are only 100"):
        load("digits", length=2, train_size=60, held_out_size=30, test_size=11)


def test_a_small_reasoning_gym_task_has_what_is_left() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "allow_negation": False}
    sizes = {"task": "chain_sum", "params": tiny, "train_size": 20, "held_out_size": 100}
    task = load("reasoning_gym", **sizes)
    assert 0 < len(task.test) < 100
    assert_disjoint(task)
    with pytest.raises(RelgradError, match="usable prompts in 2000 drawn, 100 wanted"):
        load("reasoning_gym", **sizes, test_size=100)


def test_decades_to_test_by_may_come_on_top() -> None:
    half, more = load("next_number"), load("next_number", test_fraction=0.1)
    assert texts(more.validation)  # all of the held-out decades
    assert set(texts(half.validation)) | set(texts(half.test)) == set(texts(more.validation))
    assert len(more.test) == 100
    assert len(more.train) < len(half.train)
    assert_disjoint(more)
    assert load("next_number", test_fraction=0).two_parts
    assert load("next_number", held_out_fraction=0.001).two_parts, "one decade cannot be halved"


def test_forms_may_be_judged_on_one_split_alone() -> None:
    both = load("forms", train_size=50, held_out_size=20)
    for settings, part in (({"test_size": 0}, both.validation), ({"held_out": "test"}, both.test)):
        task = load("forms", train_size=50, held_out_size=20, **settings)
        assert task.two_parts
        assert texts(task.validation) == texts(part)
    with pytest.raises(ValueError, match=r"held_out='test' judges everything on the test families, so test_size=5"):
        load("forms", held_out="test", test_size=5)


def test_nothing_of_the_text_is_in_two_parts(tmp_path: Path) -> None:
    """Windows of test never overlap windows of validation: every stretch of the text is in one part alone."""
    path = tmp_path / "numbers.txt"
    path.write_text("".join(f"{i:06d}\n" for i in range(12_000)))
    for aligned in ("line", "window"):
        task = load("masked_text", text=str(path), train_size=400, held_out_size=100, length=70, aligned=aligned)
        lines = [{line for p in whole(part) for line in str(p.columns["truth"]).split("\n")[1:-1]} for part in
                 (task.train, task.validation, task.test)]  # fmt: skip
        assert all(lines)
        for one, other in itertools.combinations(lines, 2):
            assert not one & other


def test_a_text_with_one_held_out_block_has_two_parts(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("".join(f"{i:06d}\n" for i in range(100)))
    settings = {"text": str(path), "length": 16, "held_out_size": 10}
    assert load("masked_text", **settings).two_parts
    with pytest.raises(
        RelgradError, match=r"test_size=5: the text held out cannot be cut in two parts .*held_out_frac"
    ):
        load("masked_text", **settings, test_size=5)
    with pytest.raises(RelgradError, match="test_size=5, but no text is held out"):
        load("masked_text", **settings, test_size=5, held_out_fraction=0)


# ---------------------------------------------------------------- rows


def sums(path: Path, numbers: Iterable[int]) -> Path:
    path.write_text("\n".join(json.dumps({"prompt": f"{i} + {i} =", "answer": str(2 * i)}) for i in numbers))
    return path


def test_rows_have_a_test_part_where_one_is_asked_for(tmp_path: Path) -> None:
    path = sums(tmp_path / "a.jsonl", [*range(100), *range(100)])
    two, three = load("file", path=path), load("file", path=path, test_fraction=0.2)
    assert two.two_parts
    assert [len(part) for part in (three.train, three.validation, three.test)] == [140, 20, 40]
    assert texts(three.validation) == texts(two.validation)
    assert texts(two.train) == [
        t for t in texts(p for p in two.train) if t in {*texts(three.train), *texts(three.test)}
    ]
    assert_disjoint(three)
    backward = sums(tmp_path / "b.jsonl", [*reversed(range(100))])
    assert set(texts(load("file", path=backward, test_fraction=0.2).test)) == set(texts(three.test))
    assert texts(load("file", 1, path=path, test_fraction=0.2).test) != texts(three.test)


def test_a_test_file_is_neither_trained_on_nor_validated_by(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, held_out, test = (
        sums(tmp_path / f"{name} 100%.jsonl", numbers)
        for name, numbers in (("train", range(10)), ("held out", range(8, 14)), ("test", [0, 1, 13, 20]))
    )
    task = load("file", path=train, held_out_path=held_out, test_path=test)
    assert texts(task.train) == [f"{i} + {i} =" for i in range(2, 8)]
    assert texts(task.validation) == [f"{i} + {i} =" for i in range(8, 13)]
    assert texts(task.test) == ["0 + 0 =", "1 + 1 =", "13 + 13 =", "20 + 20 ="]
    assert "dropped 2 of 10 prompts that are also to test by" in caplog.text
    assert "dropped 1 of 6 prompts to validate by that are also to test by" in caplog.text
    assert "dropped 2 of 8 training prompts that are also held out" in caplog.text
    assert len({p.id for p in [*task.train, *task.validation, *task.test]}) == 15
    mixed = load("file", path=train, test_path=test)
    assert_disjoint(mixed)
    assert texts(mixed.test) == texts(task.test)
    assert len(mixed.validation) == 1
    with pytest.raises(RelgradError, match="every training prompt is also held out"):
        load("file", path=test, test_path=test)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_part_of_few_rows_has_a_prompt(count: int, tmp_path: Path) -> None:
    path = sums(tmp_path / "a.jsonl", range(count))
    for fractions in ((0.01, 0.01), (0.6, 0.3), (0.1, 0.89)):
        task = load("file", path=path, held_out_fraction=fractions[0], test_fraction=fractions[1])
        assert min(len(part) for part in (task.train, task.validation, task.test)) >= 1
        assert_disjoint(task)
    with pytest.raises(RelgradError, match="2 distinct prompts cannot be split in 3 parts"):
        load("file", path=sums(path, range(2)), test_fraction=0.1)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    for kind, key in (("file", "path"), ("dataset", "split")):
        for settings, why in (
            ({f"test_{key}": "b", "test_fraction": 0.1}, "exclude each other"),
            ({f"held_out_{key}": "b", "held_out_fraction": 0.2}, "exclude each other"),
            ({"held_out_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ):
            with pytest.raises(ValueError, match=why):
                load(kind, path="a", **settings)
    for other in ("train", "validation"):
        with pytest.raises(ValueError, match=f"test_split='{other}' is the split to train on or to validate by"):
            load("dataset", path="a", held_out_split="validation", test_split=other)


def test_splits_of_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {name: [{"prompt": f"{name} {i}"} for i in range(4)] for name in ("train", "validation", "test")}
    datasets.DatasetDict({name: datasets.Dataset.from_list(some) for name, some in rows.items()}).save_to_disk(
        tmp_path / "d"
    )
    task = load("dataset", path=str(tmp_path / "d"), held_out_split="validation", test_split="test")
    assert [texts(part) for part in (task.train, task.validation, task.test)] == [
        [row["prompt"] for row in rows[name]] for name in ("train", "validation", "test")
    ]
    assert load("dataset", path=str(tmp_path / "d"), held_out_split="test").two_parts


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("kind", registry.kinds("tasks"))
def test_settings_that_were_written_out_are_read_again(kind: str) -> None:
    """A run folder's recipe has every default in it."""
    some = {"file": {"held_out_path": "b", "test_path": "c"}, "dataset": {"held_out_split": "b", "test_split": "c"},
            "site": {"url": "http://127.0.0.1:5000"},
            "sites": {"sites": {name: {"folder": name, "cases": "a"} for name in "ab"}}}  # fmt: skip
    model = registry.find("tasks", kind).Settings
    required = {name: "a" for name, field in model.model_fields.items() if field.is_required()}
    settings = model.model_validate(required | some.get(kind, {}))
    assert model.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    "name", ["demo", "quick", "fill", "fill-quick", "fill-baseline", "forms-flow", "forms-flow-quick"]
)
def test_built_in_recipes_have_three_parts(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    for stage in resolve(recipe).stages:
        task = load_task(stage)
        assert not task.two_parts
        assert len(task.test) >= stage.evaluation.num_prompts or stage.stage == "judge" or not stage.judged_by
