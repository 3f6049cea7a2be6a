"""Drafts of texts on the way, and credit for single steps by what they are worth."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from commands import lines, relgrad
from enumerated import close, flat_gradient, seeded
from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt, Rollouts, Score
from relgrad.policies.unmasking.policy import UnmaskingPolicy
from relgrad.policies.unmasking.settings import Settings
from relgrad.policies.unmasking.toy import PROMPTS, enumerate_all, reward, small
from relgrad.rewards import drafts
from relgrad.rewards.drafts import by_decision
from relgrad.trajectories.states import unpack_states

WAYS = {
    "one a step": {"law": {"order": "random"}, "max_completion_length": 3},
    "low confidence": {"law": {"order": "low_confidence"}, "max_completion_length": 3, "steps": 2},
    "blocks": {"law": {"order": "random"}, "max_completion_length": 4, "block_length": 2, "steps": 4},
}


def states(rollouts: Rollouts) -> torch.Tensor:
    return unpack_states(rollouts.trace, torch.arange(rollouts.rows))


def filled_slowly(policy: UnmaskingPolicy, prompt: Prompt, state: list[int]) -> str:
    """The text of one state, every mask replaced by the most probable id, by one plain forward pass over prompt and state."""
    ids = list(policy.symbols.encode(prompt)) + state
    with torch.no_grad():
        row_1L = torch.tensor([ids])
        hidden_LH = policy.network.hidden(row_1L, torch.ones_like(row_1L, dtype=torch.bool), torch.zeros_like(row_1L))[
            0
        ]
        best_L = policy.engine.logits(hidden_LH).argmax(-1).tolist()
    written = [best if now == policy.symbols.mask_id else now for now, best in zip(ids, best_L, strict=True)]
    answer = written[len(ids) - len(state) :]
    end = next((i for i, token in enumerate(answer) if token in policy.symbols.end_ids), len(answer))
    return policy.symbols.decode(answer[:end])


@pytest.mark.parametrize("way", WAYS)
def test_drafts_are_what_the_network_would_write_at_once_and_end_with_the_text(way: str) -> None:
    policy = small(drafts=True, **WAYS[way])  # type: ignore[arg-type]
    rollouts = policy.sample(PROMPTS, 12, seeded(3))
    seen = set()
    for row, output in enumerate(rollouts.outputs):
        live = rollouts.mask_BT[row].nonzero()[:, 0].tolist()
        assert len(output.drafts) == len(live) + 1
        assert output.drafts[-1] == output.text
        prompt = PROMPTS[int(rollouts.group_B[row])]
        at_states = [states(rollouts)[row, 0].tolist(), *(states(rollouts)[row, step + 1].tolist() for step in live)]
        assert output.drafts == tuple(filled_slowly(policy, prompt, state) for state in at_states)
        seen.add(output.drafts)
    assert len(seen) > 10, "otherwise the steps hardly matter"


def test_without_drafts_a_policy_writes_the_same_texts() -> None:
    way = WAYS["low confidence"]
    plain, drafted = (small(drafts=d, **way).sample(PROMPTS, 8, seeded(3)) for d in (False, True))  # type: ignore[arg-type]
    assert [o.text for o in plain.outputs] == [o.text for o in drafted.outputs]
    assert torch.equal(plain.behaviour_logp_BT, drafted.behaviour_logp_BT)
    assert not any(o.drafts for o in plain.outputs)


def test_known_scores() -> None:
    values = [0.25, 0.5, 0.0, 1.0]
    assert by_decision(values, "to_go") == (0.75, 0.5, 1.0)
    assert by_decision(values, "mdpo") == (0.25 + 0.5, -0.5 + 1.0, 1.0)
    unscored = by_decision([0.0, math.nan, 1.0], "to_go")
    assert unscored[0] == 1.0
    assert math.isnan(unscored[1])


def test_credit_to_go_leaves_the_objective_as_it_is_and_mdpos_does_not() -> None:
    """Over every trajectory: sum of P(tau) score_d grad log P_d against the gradient of the expected reward."""
    policy = small(drafts=True, **WAYS["one a step"])  # type: ignore[arg-type]
    bare = enumerate_all(policy, PROMPTS[0])
    rollouts = policy.drafted(bare, list(states(bare).unbind(1)))
    value_B = torch.tensor([reward(output) for output in rollouts.outputs], dtype=torch.float64)
    cells_N2 = rollouts.cells()

    def logp_BT() -> torch.Tensor:
        logp_N = policy.score(rollouts, cells_N2).logp_N.double()
        return torch.zeros(rollouts.mask_BT.shape, dtype=torch.float64).index_put(cells_N2.unbind(1), logp_N)

    logp = logp_BT()
    wanted = flat_gradient(policy, (logp.sum(-1).exp() * value_B).sum())
    gradients = {}
    for weighting in ("to_go", "mdpo"):
        score_BT = torch.tensor([
            by_decision([reward(Output(text)) for text in output.drafts], weighting)
            for output in rollouts.outputs
        ], dtype=torch.float64)  # fmt: skip
        logp = logp_BT()
        gradients[weighting] = flat_gradient(policy, (logp.sum(-1).exp().detach()[:, None] * score_BT * logp).sum())
    scale = float(wanted.abs().max())
    close(gradients["to_go"], wanted, 1e-5 * scale, "to_go")
    assert float((gradients["mdpo"] - wanted).abs().max()) > 0.05 * scale


def test_the_reward_asks_the_other_about_every_draft_and_about_none_twice() -> None:
    asked: list[str] = []

    def counts(prompt: Prompt, outputs: list[Output]) -> list[Score]:
        asked.extend(output.text for output in outputs)
        return [Score(float(output.text.count("a")), {"length": float(len(output.text))}) for output in outputs]

    built = drafts.of(counts, "counts", "to_go")
    one, two = Output("aa", (), ("b", "ab", "aa")), Output("ab", (), ("b", "bb", "ab"))
    scores = built(Prompt("x"), [one, two])
    assert asked == ["b", "ab", "aa", "bb"]
    assert [(s.value, s.parts["length"], s.per_decision) for s in scores] == [(2, 2, (2, 1)), (1, 2, (1, 1))]
    with pytest.raises(RelgradError, match=r"policy\.drafts: true"):
        built(Prompt("x"), [Output("a")])


def test_what_does_not_fit_is_refused() -> None:
    for options in ({"train_steps": 1}, {"estimator": {"kind": "mean_field"}}):
        with pytest.raises(ValidationError, match="drafts=true with train_steps"):
            Settings(drafts=True, max_completion_length=4, **options)
    with pytest.raises(RelgradError, match="'nothing_like_it'"):
        drafts.build(drafts.Settings(of={"kind": "nothing_like_it"}))
    with pytest.raises(RelgradError, match="well_formed"):
        drafts.build(drafts.Settings(of={"kind": "puzzles", "well_formed": 2}))


def test_a_run_with_credit_by_drafts(tmp_path: Path) -> None:
    relgrad("run", "unmasking-quick", f"out={tmp_path}", "policy.network.n_layer=1", "policy.network.n_embd=16",
            "policy.drafts=true", "stages.0.sft.steps=12", "stages.1.grpo.steps=2", "stages.0.evaluation.num_prompts=4",
            "stages.1.evaluation.num_prompts=4", "rewards=[{kind: drafts, of: {kind: exact, per_character: true}}]",
            "stages.1.grpo.credit=decision")  # fmt: skip
    steps = [line for line in lines(tmp_path / "unmasking-quick" / "2-grpo" / "metrics.jsonl") if "reward" in line]
    assert len(steps) == 2
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert any(line["grad_norm"] > 0 for line in steps)
