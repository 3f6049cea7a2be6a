"""List programs: what operators do, which programs are one, tasks whose parts share no function, and what a program is worth."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from pydantic import ValidationError

from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt
from relgrad.environments.lists.examples import Example, agrees, explained, read, written
from relgrad.environments.lists.functions import canonical, functions
from relgrad.environments.lists.operators import LIMIT, NAMES, OPERATORS
from relgrad.environments.lists.program import PROBES, Program
from relgrad.environments.lists.tasks import curriculum
from relgrad.rewards import list_program
from relgrad.tasks import list_programs

RESULTS = {
    "reverse": (2, 2, -4, 3), "sort": (-4, 2, 2, 3), "unique": (3, -4, 2), "rotate": (-4, 2, 2, 3), "tail": (-4, 2, 2),
    "init": (3, -4, 2), "cumsum": (3, -1, 1, 3), "diff": (-7, 6, 0), "cummax": (3, 3, 3, 3), "inc": (4, -3, 3, 3),
    "dec": (2, -5, 1, 1), "double": (6, -8, 4, 4), "halve": (1, -2, 1, 1), "negate": (-3, 4, -2, -2),
    "square": (9, 16, 4, 4), "evens": (-4, 2, 2), "odds": (3,), "positives": (3, 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_does_what_it_is_called(name: str):
    assert OPERATORS[name]((3, -4, 2, 2)) == RESULTS[name]
    assert len(OPERATORS[name](())) == 0


def test_numbers_stay_within_the_limit():
    assert Program.parse("square | square | square")((9, -9, 1)) == (LIMIT, LIMIT, 1)
    assert Program.parse("negate | double")((LIMIT,)) == (-LIMIT,)
    assert Program.parse("cumsum")((LIMIT, 5, -5)) == (LIMIT, LIMIT, LIMIT - 5)


@pytest.mark.parametrize(
    ("one", "other"),
    [("reverse | reverse", ""), ("inc | dec", ""), ("sort | reverse | sort", "sort"), ("double | evens", "double")],
)
def test_programs_that_do_the_same_are_one(one: str, other: str):
    assert Program.parse(one).hash == Program.parse(other).hash
    assert canonical(Program.parse(one)) == canonical(Program.parse(other))
    assert Program.parse(one).hash != Program.parse("rotate").hash


def test_every_function_of_two_operators_is_listed_once_by_a_shortest_program():
    levels = functions(2)
    listed = {program.outputs: length for length, level in enumerate(levels) for program in level}
    assert len(listed) == sum(map(len, levels))
    shortest: dict[Any, int] = {PROBES: 0}
    for length in (1, 2):
        for steps in itertools.product(range(len(NAMES)), repeat=length):
            shortest.setdefault(Program(steps).outputs, length)
    assert listed == shortest


def test_a_text_that_is_no_program_is_refused_by_its_word():
    with pytest.raises(RelgradError, match=r"'sotr' is no operator .* reverse, sort"):
        Program.parse("tail | sotr")


def test_examples_are_read_as_they_are_written():
    shown = read("[3, -1] -> [-1, 3]; [] -> []")
    assert shown == (((3, -1), (-1, 3)), ((), ()))
    assert read(written(shown)) == shown
    for text in (
        "",
        "[1] [2]",
        "[1] -> [2.5]",
        "[1] -> [True]",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9] -> []",
        "[1] -> [1000]",
        "[1] -> [[2]]",
    ):
        with pytest.raises(RelgradError, match=r"\[3, 1, 2\] -> \[1, 2, 3\]"):
            read(text)


@pytest.fixture(scope="module")
def task() -> Any:
    sizes = {"train_size": 40, "validation_size": 10, "test_size": 20, "order": 300, "rising": 100}
    return list_programs.load(list_programs.Settings(lengths=(1, 2), held_out_lengths=(1, 2), **sizes), seed=3)


def test_no_function_is_in_two_parts(task: Any):
    hashes = [
        {Program.parse(p.columns["program"]).hash for p in part} for part in (task.train, task.validation, task.test)
    ]
    assert [len(part) for part in hashes[1:]] == [10, 20]
    assert len(set.union(*hashes)) == sum(map(len, hashes))
    assert len({p.id for part in (task.train, task.validation, task.test) for p in part}) == 70


def test_a_task_is_what_its_shortest_program_does_and_no_shorter_one(task: Any):
    for prompt in [*task.train[:30], *task.test]:
        program, visible = Program.parse(prompt.columns["program"]), read(prompt.text)
        assert len(visible) == 4
        assert agrees(program, visible)
        assert not explained(visible, prompt.columns["length"] - 1)
        assert len(program.steps) == prompt.columns["length"] == len(canonical(program).steps)


def test_the_same_seed_makes_the_same_task_and_another_one_another(task: Any):
    settings = list_programs.Settings(
        lengths=(1, 2), held_out_lengths=(1, 2), train_size=40, validation_size=10, test_size=20
    )
    assert [p.text for p in list_programs.load(settings, seed=3).test] == [p.text for p in task.test]
    assert [p.text for p in list_programs.load(settings, seed=4).test] != [p.text for p in task.test]


def test_no_other_function_of_as_many_operators_is_right_on_the_hidden_examples(task: Any):
    """By the default number of hidden examples: every short program that a task accepts does the same to 300 other lists."""
    draw = random.Random(0)
    others = [tuple(draw.randint(-9, 9) for _ in range(draw.randint(3, 7))) for _ in range(300)]
    for prompt in task.test:
        assert len(prompt.columns["hidden"]) == 16
        right = Program.parse(prompt.columns["program"])
        examples = [*read(prompt.text), *(Example(tuple(a), tuple(b)) for a, b in prompt.columns["hidden"])]
        accepted = [program for level in functions(2) for program in level if agrees(program, examples)]
        assert accepted
        for program in accepted:
            assert sum(program(values) != right(values) for values in others) <= 3, f"{program.text} for {right.text}"


def test_short_programs_come_first(task: Any):
    lengths = [p.columns["length"] for p in task.train]
    assert set(lengths[:50]) == {1}
    assert set(lengths[50:]) == {1, 2}
    order = curriculum([["a", "b"], ["c", "d"]], 40, 0, seed=0)
    assert set(order[:8]) == set("abcd"), "nothing rises: all are there at once"
    seen = [item for item in order if item in "ab"]
    assert all(set(pair) == {"a", "b"} for pair in zip(seen[::2], seen[1::2], strict=False)), (
        "each before any comes again"
    )


def test_too_few_functions_and_settings_that_cannot_be():
    with pytest.raises(RelgradError, match=r"18 functions|functions are left for 50 tasks of the part 'test'"):
        list_programs.load(list_programs.Settings(held_out_lengths=(1,), validation_size=0, test_size=50), seed=0)
    with pytest.raises(ValidationError, match="1 to 4 operators"):
        list_programs.Settings(lengths=(0, 2))
    with pytest.raises(ValidationError, match="rising=10 is more than order=5"):
        list_programs.Settings(rising=10, order=5)


def test_a_program_is_right_where_hidden_examples_agree_too():
    prompt = Prompt("[1, 2] -> [1, 2]\n[3, 5] -> [3, 5]", {"hidden": [[[2, 1], [1, 2]]]})
    scores = list_program.build(list_program.Settings())(
        prompt, [Output(text) for text in ("sort", "", "reverse", "print(1)", "sort | sort")]
    )
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert [score.parts["visible"] for score in scores] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert [score.parts["parses"] for score in scores] == [1.0, 1.0, 1.0, 0.0, 1.0]


def test_functions_are_told_apart_as_often_as_their_outputs_differ():
    draw = random.Random(0)
    for _ in range(200):
        one, other = (Program(tuple(draw.randrange(len(NAMES)) for _ in range(2))) for _ in range(2))
        assert (one.hash == other.hash) == (one.outputs == other.outputs)
