"""The core types: what travels between policies, rewards, losses and the loop.

Axes are part of every tensor's name: **B** rows (trajectories), **T** decisions (of the longest row), **G** groups,
**R** rewards, **N** chosen cells (row, decision). Log-probabilities are nats, float32, summed over the whole decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError

Message = Mapping[str, str]
Stop = Literal["eos", "length", "error"]
SYSTEM_ROLES = ("system", "developer")
"""Roles of the one message that says how to answer; some templates call it the developer's."""


@dataclass(frozen=True)
class Prompt:
    """One question put to the policy.

    `content` is plain text or a chat (a sequence of {"role", "content"}); `columns` holds every other column of the
    dataset row (the answer, say), which rewards receive by name; `id` is stable across epochs and runs. Prompts of one
    `family` are alike (forms of one kind), so that intervals are over families; "" where there are none.
    """

    content: str | Sequence[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    family: str = ""

    @property
    def text(self) -> str:
        """The prompt as one readable string (a chat is shown role by role)."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.content)


@dataclass(frozen=True)
class Example:
    """One supervised example: the prompt and the text that should follow it."""

    prompt: Prompt
    target: str


class SupervisedLoss(NamedTuple):
    """What a supervised loss says of some examples, summed over their targets.

    total    differentiable scalar, what is minimised
    targets  how many targets (tokens, positions) it was summed over
    nll      -log p of these targets in nats, without smoothing, weights and further terms; None where the loss is of no likelihood
    """

    total: Tensor
    targets: int
    nll: float | None = None


@dataclass(frozen=True)
class Output:
    """One finished generation as a reward reads it: its text and, where it has them, its token ids.

    drafts  where a policy was asked for them, one text more than the row has decisions: before the first decision and after each,
            the whole text as the policy would fill it in at once. The last is `text`
    """

    text: str
    ids: tuple[int, ...] = ()
    drafts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rollouts:
    """A batch of finished trajectories of decisions, with the law's own log-probabilities at sampling time.

    prompts            one per group, indexed by `group_B`
    group_B            int64 [B]; which rows are compared. Grouping is data, so ragged groups need no code
    behaviour_logp_BT  float32 [B, T], nats, recorded when the decision was drawn; 0 where `mask_BT` is False
    mask_BT            bool [B, T]; True where the decision is the policy's own and trainable
    size_BT            int64 [B, T]; elementary choices in the decision: 1 for a token, k for k revealed positions. Over the
                       decisions of `mask_BT` they add up to what is reported as the row's length in tokens
    outputs            [B]; what a reward reads
    stop               [B]; why each row ended: its own end ("eos"), the length limit ("length") or an "error"
    policy_version     the number of weight updates the sampling policy had seen
    foreign            the log-probs were computed by another engine than `Policy.score`, and differ from it by more than rounding
    trace              tensors that only the policy which wrote them understands; enough to score the rows again
    stands_for         1 / probability that a decision was chosen to be trained, where a policy trains a random part of each row
                       (and `mask_BT` says which); losses that sum over decisions multiply by it
    """

    prompts: tuple[Prompt, ...]
    group_B: Tensor
    behaviour_logp_BT: Tensor
    mask_BT: Tensor
    size_BT: Tensor
    outputs: tuple[Output, ...]
    stop: tuple[Stop, ...]
    policy_version: int
    trace: Mapping[str, Tensor]
    foreign: bool = False
    stands_for: float = 1.0

    def __post_init__(self) -> None:
        rows, decisions = self.behaviour_logp_BT.shape
        if not (self.group_B.shape == (rows,) and self.mask_BT.shape == self.size_BT.shape == (rows, decisions)):
            raise ValueError(
                f"Rollouts disagree on B x T: group_B {tuple(self.group_B.shape)}, behaviour_logp_BT {(rows, decisions)}, "
                f"mask_BT {tuple(self.mask_BT.shape)}, size_BT {tuple(self.size_BT.shape)}"
            )
        if not rows == len(self.outputs) == len(self.stop):
            raise ValueError(f"Rollouts have {rows} rows but {len(self.outputs)} outputs and {len(self.stop)} stops")
        broken = int((~self.behaviour_logp_BT[self.mask_BT].isfinite()).sum())
        if broken:
            raise RelgradError(
                f"the log-probabilities of {broken} of {int(self.mask_BT.sum())} decisions just drawn are NaN or infinite: the "
                "network computes no numbers. Its weights hold NaN, or have grown too large: go back to an earlier checkpoint and "
                "lower the learning rate, or use dtype: float32"
            )

    @property
    def rows(self) -> int:
        """B, the number of trajectories."""
        return self.behaviour_logp_BT.shape[0]

    def cells(self, rows: Tensor | None = None) -> Tensor:
        """int64 [N, 2]: (row, decision) of every trainable decision, of the given rows only where `rows` is given."""
        cells_N2 = self.mask_BT.nonzero()
        if rows is None:
            return cells_N2
        chosen_B = torch.zeros(self.rows, dtype=torch.bool)
        chosen_B[rows] = True
        return cells_N2[chosen_B[cells_N2[:, 0]]]


class CompletionRequest(NamedTuple):
    """Completions of one prompt that another program is to write: so many `completions`, drawn from `seed`."""

    prompt_ids: list[int]
    completions: int
    seed: int


class Written(NamedTuple):
    """One completion that another program wrote.

    ids    of its tokens; where it ended itself, its end is the last of them
    logp   of each token under the law that drew it, in nats, as that program says
    ended  whether it ended itself; else the length limit cut it off
    """

    ids: tuple[int, ...]
    logp: tuple[float, ...]
    ended: bool


class CellScores(NamedTuple):
    """What a policy says of N cells: differentiable, float32, nats.

    `entropy_N` is the entropy of the law at the cell, `kl_N` the exact KL(policy || reference) at the cell; each is
    None unless it was asked for.
    """

    logp_N: Tensor
    entropy_N: Tensor | None = None
    kl_N: Tensor | None = None


class Score(NamedTuple):
    """One reward for one output. NaN means *unscored*: `why` says for what reason. It is never counted as 0.

    `per_decision` may give every decision of the row a score of its own, in order; `value` is then usually their mean.
    """

    value: float
    parts: Mapping[str, float] = {}
    why: str = ""
    per_decision: tuple[float, ...] = ()


@dataclass(frozen=True)
class RewardTable:
    """All rewards of one batch: `value_BR` float64 [B, R] with NaN where unscored, and what to show a person.

    A reward of weight 0 is a *monitor*: it is shown, and neither its scores nor their absence count for anything else.
    decision_BRT  float64 [B, R, T]: scores of single decisions, NaN where a reward gave none; None when none gave any
    trace         the traceback of the first failure, for people; empty where nothing failed
    """

    names: tuple[str, ...]
    weights_R: Tensor
    value_BR: Tensor
    parts: tuple[Mapping[str, float], ...] = ()
    why: tuple[str, ...] = ()
    decision_BRT: Tensor | None = None
    trace: str = ""

    @property
    def counted_R(self) -> Tensor:
        """bool [R]; False for monitors."""
        return self.weights_R != 0

    def only(self, keep_B: Tensor) -> RewardTable:
        """The same table in which all other rows are unscored."""
        decision_BRT = self.decision_BRT
        if decision_BRT is not None:
            decision_BRT = decision_BRT.masked_fill(~keep_B[:, None, None], torch.nan)
        return replace(self, value_BR=self.value_BR.masked_fill(~keep_B[:, None], torch.nan), decision_BRT=decision_BRT)


@dataclass(frozen=True)
class Experience:
    """What the learner consumes: rollouts with their rewards, and where they came from.

    group_B           int64 [B]: the rows' groups, numbered over the whole batch
    source            who drew them: "policy", "replay", "search" …
    proposal_logp_BT  float32 [B, T], nats: the log-probabilities under which the rows were drawn, where another than the current
                      policy drew them (an older one, an engine that computes otherwise); None where the current policy did
    age_B             int64 [B]: generation batches since the rows were drawn; 0 for fresh ones
    shaping           gamma, where rows that another than the policy chose (a search, say) are weighted by the slope of
                      p / (p + gamma), p being the policy's own probability of the decision; None: by importance
    local             False for rows of another process: their `trace` is empty, and that process scores them
    """

    rollouts: Rollouts
    rewards: RewardTable
    group_B: Tensor
    source: str
    age_B: Tensor
    proposal_logp_BT: Tensor | None = None
    shaping: float | None = None
    local: bool = True


@dataclass
class StepRecord:
    """One line of metrics.jsonl: the optimizer step it belongs to and its named figures."""

    step: int
    metrics: dict[str, float]
