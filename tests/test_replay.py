"""Replay: what is kept, what joins a batch, what its rows weigh, and that a killed run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from relgrad.core.types import Prompt
from relgrad.objectives.losses import PolicyLoss
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.replay import Replay
from toy_policy import TablePolicy, Truncation

PROMPTS = tuple(Prompt(text, id=i) for i, text in enumerate(("p", "q", "r", "s")))


def only_b(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(text == "bb") for text in completions]


def letters(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(text.count("b")) for text in completions]


def loop(reward: Any = letters, seed: int = 0, **settings: Any) -> Grpo:
    policy = TablePolicy([p.text for p in PROMPTS], Truncation(), seed=3)
    chosen = GrpoSettings(**{"num_prompts": 4, "num_generations": 4, "learning_rate": 0.05, **settings})
    return Grpo(policy, PROMPTS, RewardSet([NamedReward("r", reward)], 60), PolicyLoss(), chosen, seed=seed)


def past_rows(made: Grpo) -> list[tuple[Any, torch.Tensor]]:
    """(part, its rows that count) of the past in the batch in use."""
    assert made.batch is not None
    found, first = [], 0
    for part in made.batch.parts:
        keep_B = made.batch.keep_B[first : first + part.rollouts.rows]
        first += part.rollouts.rows
        if part.source == "replay":
            found.append((part, keep_B))
    return found


def test_groups_of_the_past_stand_in_the_place_of_fresh_ones():
    made = loop(replay={"keep": "groups", "share": 0.5, "max_age": 3})
    made.update()
    assert past_rows(made) == []  # there is no past yet
    assert made.cursor == 4
    for step in range(2, 8):
        made.update()
        batch = made.batch
        assert batch is not None
        groups = batch.group_B[batch.keep_B].unique()
        assert len(groups) == 4, "fresh and past groups are as many as a batch has"
        for part, keep_B in past_rows(made):
            assert bool(((part.age_B >= 1) & (part.age_B <= 3)).all())
            assert torch.equal(part.age_B, torch.full_like(part.age_B, step - 1 - part.rollouts.policy_version))
            for group in part.group_B[keep_B].unique():
                rewards = part.rewards.value_BR[part.group_B == group, 0]
                assert len(rewards) == 4
                assert rewards.max() > rewards.min(), "a group without spread was kept"
    assert made.cursor < 7 * 4, "groups of the past save sampling"


def test_a_solution_joins_a_group_that_found_none():
    made = loop(only_b, replay={"keep": "solutions", "share": 1 / 2, "max_age": 100})
    joined = 0
    for _ in range(60):
        made.update()
        batch = made.batch
        assert batch is not None
        for part, keep_B in past_rows(made):
            for row in keep_B.nonzero()[:, 0].tolist():
                joined += 1
                group = int(part.group_B[row])
                rows = (batch.group_B == group) & batch.keep_B
                assert int(rows.sum()) == 5, "one more row than the group wrote"
                assert part.rollouts.outputs[row].text == "bb"
                assert batch.reward_B[rows].tolist().count(1.0) == 1, "the group had found it itself"
                assert batch.prompts[group] == part.rollouts.prompts[int(part.rollouts.group_B[row])]
                assert float(batch.advantage_B[rows].max()) > 0
    assert joined > 3


def test_rows_of_the_past_weigh_their_truncated_importance():
    cap = 1.5
    made = loop(replay={"keep": "groups", "share": 0.5, "max_age": 5}, importance_sampling_cap=cap, learning_rate=0.3)
    weighed = 0
    for _ in range(8):
        made.update()
        made.batch = made.generate()
        batch = made.batch
        first = 0
        for part in batch.parts:
            rows = range(first, first + part.rollouts.rows)
            first += part.rollouts.rows
            cells_N2 = part.rollouts.cells(batch.keep_B[list(rows)].nonzero()[:, 0])
            own_N = made.policy.score(part.rollouts, cells_N2).logp_N.detach()
            at = cells_N2[:, 0] + rows.start, cells_N2[:, 1]
            torch.testing.assert_close(batch.behaviour_logp_BT[at], own_N, atol=1e-6, rtol=0)
            if part.source == "policy":
                assert batch.correction_BT is None or bool((batch.correction_BT[at] == 1).all())
                continue
            drawn_N = part.rollouts.behaviour_logp_BT[cells_N2.unbind(-1)]
            assert batch.correction_BT is not None
            expected_N = (own_N - drawn_N).exp().clamp(max=cap)
            torch.testing.assert_close(batch.correction_BT[at], expected_N, atol=1e-6, rtol=0)
            weighed += int((expected_N != 1).sum())
    assert weighed > 20


def test_figures_of_what_the_policy_writes_leave_the_past_out():
    made = loop(replay={"keep": "groups", "share": 0.5, "max_age": 5})
    for _ in range(6):
        made.update()
    batch = made.batch
    assert batch is not None
    assert past_rows(made)
    fresh = [part for part in batch.parts if part.source == "policy"]
    rewards = torch.cat([part.rewards.value_BR[:, 0] for part in fresh])
    assert batch.metrics["reward"] == pytest.approx(float(rewards.mean()))
    assert batch.metrics["completions/total_tokens"] == sum(int(part.rollouts.mask_BT.sum()) for part in fresh)
    assert {sample.get("age", 0) for sample in batch.samples} > {0}


@pytest.mark.parametrize("keep", ["groups", "solutions"])
def test_a_run_that_was_stopped_goes_on_exactly(keep: str, tmp_path: Path):
    settings: dict[str, Any] = {"replay": {"keep": keep, "share": 0.5, "max_age": 4}, "num_iterations": 2}
    reward = only_b if keep == "solutions" else letters
    whole = loop(reward, **settings)
    for _ in range(24):
        whole.update()
    stopped = loop(reward, **settings)
    for _ in range(11):  # inside a batch that serves two steps
        stopped.update()
    folder = checkpoint.save(tmp_path, stopped, stopped.policy)
    resumed = loop(reward, seed=0, **settings)
    checkpoint.restore(folder, resumed, resumed.policy)
    assert isinstance(resumed.source, Replay)
    assert resumed.source.memories == stopped.source.memories  # type: ignore[attr-defined]
    for _ in range(13):
        resumed.update()
    assert torch.equal(resumed.policy.table_PSV, whole.policy.table_PSV)  # type: ignore[attr-defined]


@pytest.mark.parametrize("keep", ["groups", "solutions"])
def test_a_step_that_failed_is_tried_again_with_the_same_past(keep: str, monkeypatch: pytest.MonkeyPatch):
    made, other = (loop(only_b, replay={"keep": keep, "share": 0.5, "max_age": 5}, num_iterations=2) for _ in range(2))
    for _ in range(6):
        made.update()
        other.update()
    monkeypatch.setattr(made, "_accumulate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.update()
    monkeypatch.undo()
    for _ in range(6):
        made.update()
        other.update()
    assert made.source.memories == other.source.memories
    assert [p.tolist() for _, p in made.policy.parameters()] == [p.tolist() for _, p in other.policy.parameters()]


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        ({"share": 1.0}, "less than 1"),
        ({"share": 0.05}, "replay.share=0.05 of num_prompts=4 is less than one group"),
        ({"keep": "rows"}, "'groups' or 'solutions'"),
        ({"max_age": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(replay: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        GrpoSettings(num_prompts=4, replay=replay)
