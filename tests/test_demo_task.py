"""The demo's task: held-out numbers are never counted in, and no answer without counting scores above chance."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from relgrad.core.types import Output, Prompt
from relgrad.rewards import number
from relgrad.tasks import next_number

STEP = {"next": 1, "before": -1}
score_group = number.build(number.Settings(where="only"))


def load(seed: int = 0, **settings):
    return next_number.load(next_number.Settings(**settings), seed)


def asked(prompt: Prompt) -> int:
    return int(prompt.content[-1]["content"])


def shown(prompt: Prompt) -> list[str]:
    return [m["content"] for m in prompt.content[1:-1]]


def mean_score(prompts, answer) -> float:
    """The mean score of the strategy `answer(prompt) -> text` over the prompts."""
    return sum(score_group(p, [Output(answer(p))])[0].value for p in prompts) / len(prompts)


@pytest.mark.parametrize("direction", ["next", "before"])
def test_the_answer_follows_the_number_and_the_demonstrations_are_right(direction):
    task = load(direction=direction)
    for prompt in [*task.train, *task.validation]:
        assert prompt.columns["answer"] == prompt.columns["completion"] == str(asked(prompt) + STEP[direction])
        questions, answers = shown(prompt)[::2], shown(prompt)[1::2]
        assert [int(a) - int(q) for q, a in zip(questions, answers, strict=True)] == [STEP[direction]] * 2
        assert [m["role"] for m in prompt.content] == ["system", *["user", "assistant"] * 2, "user"]
    assert len({p.id for p in [*task.train, *task.validation]}) == len(task.train) + len(task.validation)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("direction", ["next", "before"])
def test_training_never_sees_a_held_out_decade(seed, direction):
    task = load(seed, direction=direction)
    judged = [*task.validation, *task.test]
    held_out = {asked(p) // 10 for p in judged}
    seen = {int(text) for p in task.train for text in [*shown(p), str(asked(p)), p.columns["answer"]]}
    assert not held_out & {n // 10 for n in seen}
    assert len(held_out) == 20  # a fifth of the 99 decades from 10 to 999
    assert len({asked(p) // 10 for p in task.validation}) == len({asked(p) // 10 for p in task.test}) == 10
    assert sorted(asked(p) for p in judged) == sorted(d * 10 + i for d in held_out for i in range(10))
    assert not {str(asked(p)) for p in task.train} & set(shown(task.train[0])[::2])
    assert len(task.train) == len({asked(p) for p in task.train}) > 700


def test_the_same_seed_gives_the_same_task_and_another_seed_another_split():
    state = random.getstate()
    assert load(1) == load(1)
    assert {asked(p) for p in load(1).validation} != {asked(p) for p in load(2).validation}
    assert random.getstate() == state


@pytest.mark.parametrize("high", [110, 150, 9999])
def test_every_range_has_both_sides(high):
    task = load(high=high)
    numbers = [asked(p) for p in [*task.train, *task.validation]]
    assert task.train
    assert task.validation
    assert min(numbers) >= 10
    assert max(numbers) <= high


def test_correct_answers_score_one_in_any_plain_form():
    prompts = load().validation
    for form in ("{}", " {}\n", "{}.", "The next number is {}."):
        assert mean_score(prompts, lambda p, form=form: form.format(p.columns["answer"])) == 1


@pytest.mark.parametrize("direction", ["next", "before"])
def test_nothing_but_counting_scores(direction):
    task = load(direction=direction)
    prompts = [*task.train, *task.validation]
    step = STEP[direction]
    answers = sorted({p.columns["answer"] for p in prompts})[::10]
    assert max(mean_score(prompts, lambda p, a=a: a) for a in answers) <= 1 / len(prompts)  # a constant
    assert mean_score(prompts, lambda p: p.content[-1]["content"]) == 0  # echo of the question
    assert mean_score(prompts, lambda p: p.text) == 0  # echo of the whole prompt
    assert mean_score(prompts, lambda p: shown(p)[-1]) <= 1 / len(prompts)  # echo of a demonstration
    assert mean_score(prompts, lambda p: f"{asked(p)} {asked(p) + step}") == 0  # question and answer
    assert mean_score(prompts, lambda p: " ".join(str(asked(p) + i) for i in range(-2, 3))) == 0  # all neighbours
    assert mean_score(prompts, lambda p: "The next number.") == 0  # words without a number
    assert mean_score(prompts, lambda p: str(asked(p) - step)) == 0  # the wrong way
    assert mean_score(prompts, lambda p: str(asked(p) // 10 * 10 + 5)) == pytest.approx(0.1, abs=0.01)  # one last digit
    guess = random.Random(0)
    nearby = mean_score(prompts, lambda p: str(asked(p) // 10 * 10 + guess.randrange(10)))  # right decade, any digit
    assert nearby < 0.15
    width = random.Random(0)
    assert mean_score(prompts, lambda p: str(width.randrange(10, 1000))) < 0.01  # any number


def test_the_score_is_one_number_and_the_right_one():
    prompt = next(p for p in load(direction="before").train if asked(p) == 100)
    assert prompt.columns["answer"] == "99"
    texts = ["99", "100", "990", "099.0", "99 98", "no idea", ""]
    assert [s.value for s in score_group(prompt, [Output(t) for t in texts])] == [1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 10, "high": 90}, "high must be at least low \\+ 100 = 110"),
        ({"low": 3}, "greater than or equal to 10"),
        ({"held_out_fraction": 0}, "greater than 0"),
        ({"direction": "after"}, "'next' or 'before'"),
        ({"size": 3}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        next_number.Settings(**settings)
