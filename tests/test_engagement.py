"""The judge that learns from likes, and its reward. Vectors are counts of hashed words here: no encoder is loaded."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Output, Prompt
from relgrad.judges import engagement
from relgrad.judges.engagement import EngagementJudge, pairs_of, replies_of
from relgrad.rewards import engagement as reward
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.tasks import Task, replies


def word_counts(texts: list[str]) -> Tensor:
    vectors = torch.zeros(len(texts), 384)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, zlib.crc32(word.encode()) % 384] += 1
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.fixture(autouse=True)
def vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engagement, "embed", word_counts)


@pytest.fixture(scope="module")
def task() -> Task:
    return replies.load(replies.Settings(size=400), seed=0)


@pytest.fixture(scope="module")
def trained(task: Task) -> EngagementJudge:
    """A judge after 20 steps on 120 posts, audited on the validation posts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engagement, "embed", word_counts)
        judge = engagement.build(engagement.Settings(hidden=8), seed=1, policy=None)
        optimizer = torch.optim.Adam([parameter for _, parameter in judge.parameters()], lr=0.04)
        examples = [Example(prompt, "") for prompt in task.train[:120]]
        for _ in range(20):
            optimizer.zero_grad()
            loss = judge.supervised_loss(examples, torch.Generator())
            (loss.total / loss.targets).backward()
            optimizer.step()
        judge.audit([*task.validation, *task.test], torch.Generator())
    return judge


def test_pairs_are_those_that_differ() -> None:
    more_N, less_N = pairs_of(torch.tensor([3.0, 1.0, 3.0, math.nan]))
    assert list(zip(more_N.tolist(), less_N.tolist(), strict=True)) == [(0, 1), (2, 1)]


def test_the_loss_is_that_of_the_controls_where_the_text_says_nothing() -> None:
    judge = engagement.build(engagement.Settings(hidden=4), seed=0, policy=None)
    torch.nn.init.zeros_(judge.network[2].weight)
    judge.control_2.data = torch.tensor([2.0, 0.0])
    rows = [
        {"reply": "one", "reply_likes": 5, "reply_author_followers": 999},
        {"reply": "two", "reply_likes": 1, "reply_author_followers": 99},
        {"reply": "not liked by anybody who counts"},
    ]
    prompt = Prompt("p", {"tweet": "a post", "replies": rows})
    loss = judge.supervised_loss([Example(prompt, "")], torch.Generator())
    assert loss.targets == 1
    assert loss.nll == pytest.approx(math.log1p(math.exp(-2 * math.log(10))), rel=1e-4)
    equal = Prompt("p", {"tweet": "a post", "replies": rows[:1]})
    empty = judge.supervised_loss([Example(equal, "")], torch.Generator())
    assert (empty.targets, empty.nll) == (0, 0)


def test_text_is_told_apart_from_followers_and_time(trained: EngagementJudge) -> None:
    found = trained.audit_found
    assert trained.control_2[0] > 0.1, "more followers, more likes"
    assert trained.control_2[1] < -0.1, "later, fewer likes"
    assert found["accuracy_low"] > 0.5
    assert found["accuracy_of_all"] > max(found["accuracy"], found["accuracy_of_followers_and_delay"]) - 0.02
    assert found["quality_accuracy"] > found["accuracy"], "likes are a noisy witness of quality"


def test_a_judge_is_read_back_and_rewards_only_after_its_audit(
    trained: EngagementJudge, task: Task, tmp_path: Path
) -> None:
    trained.save(tmp_path / "good")
    again = engagement.build(engagement.Settings(hidden=8), seed=5, policy=None, start=tmp_path / "good")
    rows = replies_of(task.test[0])
    posts = [rows.post] * len(rows.texts)
    assert torch.equal(again.score(posts, rows.texts), trained.score(posts, rows.texts))
    score = reward.build(reward.Settings(judge=str(tmp_path / "good")))
    values = score(Prompt("p", {"tweet": rows.post}), [Output("So true!"), Output(""), Output(rows.texts[0])])
    assert 0 < values[0].value < 1
    assert math.isnan(values[1].value)
    assert values[1].why == "an empty reply"
    engagement.build(engagement.Settings(hidden=8), seed=5, policy=None).save(tmp_path / "new")
    with pytest.raises(RelgradError, match="was never audited"):
        reward.build(reward.Settings(judge=str(tmp_path / "new")))
    with pytest.raises(RelgradError, match=r"min_accuracy=0\.99 asks for more"):
        reward.build(reward.Settings(judge=str(tmp_path / "good"), min_accuracy=0.99))
    with pytest.raises(RelgradError, match=r"no engagement\.json"):
        reward.build(reward.Settings(judge=str(tmp_path)))
    with pytest.raises(RelgradError, match="another size than hidden=4"):
        engagement.build(engagement.Settings(hidden=4), seed=5, policy=None, start=tmp_path / "good")


def test_too_little_to_audit_and_missing_columns_are_errors(task: Task) -> None:
    judge = engagement.build(engagement.Settings(), seed=0, policy=None)
    with pytest.raises(RelgradError, match="3 validation posts have replies of different likes, an audit needs 8"):
        judge.require(task.validation[:3])
    with pytest.raises(RelgradError, match="needs the columns"):
        judge.require([Prompt("p", {"tweet": "a post"})])


@pytest.mark.slow
def test_a_recipe_trains_the_judge_and_then_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [
        {
            "stage": "judge",
            "judge": {"kind": "engagement", "hidden": 8},
            "sft": {"steps": 8, "batch_size": 16, "learning_rate": 0.04},
        },
        {
            "stage": "grpo",
            "rewards": [{"kind": "engagement", "judge": "stage:judge", "min_accuracy": 0.2}],
            "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 2, "learning_rate": 1e-3},
        },
    ]
    recipe = {
        "name": "liked",
        "policy": {"kind": "autoregressive", "model": "tiny", "max_completion_length": 4},
        "task": {"kind": "replies", "size": 400, "chat": False},
        "evaluation": {"num_prompts": 2, "num_generations": 1},
        "stages": stages,
    }
    folders = run_recipe(parse_recipe(recipe))
    assert (folders[0] / "audit.json").is_file()
    assert (folders[1] / "metrics.jsonl").is_file()
