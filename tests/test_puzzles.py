"""Puzzles: verifiers by known answers and enumeration, the task that serves them, the reward that reads them, and their recipe."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest

from commands import lines, relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt
from relgrad.environments.puzzles import PUZZLES
from relgrad.environments.puzzles.countdown import value_of
from relgrad.environments.puzzles.sudoku import grids
from relgrad.rewards import puzzles as reward
from relgrad.tasks import puzzles as task


@pytest.mark.parametrize("name", PUZZLES)
def test_made_answers_are_right_and_guesses_well_formed(name: str) -> None:
    puzzle, random = PUZZLES[name], Random(0)  # type: ignore[index]
    for _ in range(40):
        question, answer = puzzle.make(random)
        assert puzzle.judge(question, answer) == (True, True)
        assert len(answer) == puzzle.length
        assert set(question + answer) <= set(puzzle.characters)
        assert puzzle.judge(question, puzzle.guess(question, random)).well_formed
        for broken in ("", answer[:-1], answer + answer[0], "x" * len(answer)):
            assert puzzle.judge(question, broken) == (False, False)


def test_permutations_solve_and_repetitions_do_not() -> None:
    judge = PUZZLES["permutation"].judge
    solutions = [one for one in itertools.product("604", repeat=3) if judge("604", "".join(one)).solved]
    assert len(solutions) == 6
    assert judge("604", "664") == (False, True)
    assert judge("604", "614") == (False, False)


def test_there_are_288_grids_and_a_question_of_sudoku_has_one_solution() -> None:
    assert len(set(grids())) == 288
    puzzle = PUZZLES["sudoku"]
    question, answer = puzzle.make(Random(1))
    assert 7 <= question.count(".") <= 9
    assert [grid for grid in grids() if puzzle.judge(question, grid).solved] == [answer]
    blank = question.index(".")
    wrong = "2" if answer[blank] == "1" else "1"
    assert puzzle.judge(question, answer[:blank] + wrong + answer[blank + 1 :]) == (False, True)
    given = next(cell for cell, digit in enumerate(question) if digit != ".")
    moved = "".join("1234"["1234".index(digit) - 1] for digit in answer)  # a grid as well, but of other given digits
    assert moved[given] != answer[given]
    assert puzzle.judge(question, moved) == (False, False)


def test_countdown_counts_products_first_and_every_number_once() -> None:
    for one, two, three in itertools.product("+-*", repeat=3):
        text = f"7{one}2{two}9{three}4"
        assert value_of(text) == eval(text)
    judge = PUZZLES["countdown"].judge
    assert judge("2,7,9=25", "2*9+7") == (True, True)
    assert judge("2,7,9=25", "9+9+7") == (False, True), "a number twice"
    assert judge("2,7,9=25", "2+7*9") == (False, True), "another value"
    assert judge("2,7,9=25", "２*9+7") == (False, False), "a digit of another script"


def test_parts_share_no_puzzle_and_the_teacher_is_as_right_as_it_is_told() -> None:
    settings = task.Settings(puzzle="permutation", right=0.25, train_size=600)
    loaded = task.load(settings, 3)
    parts = [{p.text for p in part} for part in (loaded.train, loaded.validation, loaded.test)]
    assert [len(part) for part in parts] == [600, 150, 150]
    assert not any(one & other for one, other in itertools.combinations(parts, 2))
    right = [p.columns["completion"] == p.columns["answer"] for p in loaded.train]
    assert sum(right) == pytest.approx(150, abs=4 * (600 * 0.25 * 0.75) ** 0.5)
    assert all(p.columns["completion"] == p.columns["answer"] for p in (*loaded.validation, *loaded.test))
    assert [p.text for p in task.load(task.Settings(puzzle="permutation"), 3).validation] == [
        p.text for p in loaded.validation
    ]
    with pytest.raises(RelgradError, match=r"puzzle=countdown.*lower the sizes"):
        task.load(task.Settings(puzzle="countdown", train_size=2000), 0)


def test_the_reward_is_the_verifiers() -> None:
    prompt = Prompt("2,7,9=25:", {"puzzle": "countdown", "question": "2,7,9=25"}, 0)
    outputs = [Output(text) for text in ("2*9+7", " 2*9+7\n", "2+9+7", "2+", "")]
    assert [s.value for s in reward.build(reward.Settings())(prompt, outputs)] == [1, 1, 0.1, 0, 0]
    assert [s.value for s in reward.build(reward.Settings(well_formed=0))(prompt, outputs)] == [1, 1, 0, 0, 0]
    with pytest.raises(RelgradError, match="puzzle"):
        reward.build(reward.Settings())(Prompt("1+1=", {"question": "1+1="}, 0), outputs)


def test_the_recipe_runs_and_its_policy_is_asked_in_the_words_of_training(tmp_path: Path) -> None:
    small = ("policy.network.n_layer=1", "policy.network.n_embd=16", "policy.network.n_head=2", "evaluation.num_prompts=4",
             "task.train_size=100", "task.held_out_size=8")  # fmt: skip
    relgrad("run", "countdown-unmasking", f"out={tmp_path}", *small, "stages.0.sft.steps=3", "stages.1.grpo.steps=1")
    folder = tmp_path / "countdown-unmasking"
    (evaluation, *_) = lines(folder / "2-grpo" / "evaluations.jsonl")
    assert evaluation["score"] >= 0
    samples = [line for file in (folder / "2-grpo" / "samples").glob("*.jsonl") for line in lines(file)]
    assert all("=" in line["prompt"] and line["prompt"].endswith(":") for line in samples)
    assert '"completion"' in relgrad("sample", folder, "--prompt", "2,7,9=25", "--json")
