"""All rewards of a recipe as one: every reward is called once per group, and what fails is a value, never a zero.

- An exception, or a call that outlasts the time-out, leaves that group's completions *unscored* by that reward: NaN in
  the table, the reason in `why`. So do None, NaN and infinities, completion by completion.
- A mistake in the recipe or in the reward's shape (a column that is not there, the wrong number of values, a value
  that is no number) raises RelgradError: it would not go away by itself.
- Whether a batch in which nothing was scored is a mistake is for the caller to judge, who knows all of it (core/tables.py).

Where rewards are called, and what happens at a deadline: _runners.py.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Learner, Reward
from relgrad.core.types import RewardTable, Rollouts, Score
from relgrad.rewards._answers import Answer, Group, Unanswered
from relgrad.rewards._calling import Caller
from relgrad.rewards._process import Isolated, IsolatedRunner
from relgrad.rewards._ray import RayRunner
from relgrad.rewards._runners import Runner, runner_of
from relgrad.rewards._workers import AsyncWorker

__all__ = ["Isolated", "NamedReward", "NamesRewards", "RewardSet"]

logger = logging.getLogger(__name__)


@runtime_checkable
class NamesRewards(Protocol):
    """A module whose rewards have names of their own, as functions do. Those of other modules are called after their kind."""

    def name_of(self, settings: Any) -> str:
        """What the reward with these settings is called."""
        ...


@runtime_checkable
class NeedsColumns(Protocol):
    """A module whose rewards can do nothing without certain columns of the task: that is said before a policy is loaded."""

    def columns_of(self, settings: Any) -> tuple[str, ...]:
        """The names of these columns, for a reward with these settings."""
        ...


@dataclass(frozen=True)
class NamedReward:
    """A reward, the name it is logged under and its weight in the sum; weight 0 makes it a monitor."""

    name: str
    function: Reward | Isolated
    weight: float = 1.0


@dataclass
class _Batch:
    """What has been learnt about one batch: scores by (row, reward), and the first failure's traceback."""

    scores: dict[tuple[int, int], Score] = field(default_factory=dict)
    trace: str = ""


def _isolated(name: str, reward: Isolated, seconds: float) -> Runner:
    return (RayRunner if reward.how == "ray" else IsolatedRunner)(name, reward, seconds)


class RewardSet:
    """Implements protocols.Rewards.

    Functions run one after the other; coroutines and isolated rewards start first and run meanwhile. `timeout` is in seconds, for
    one reward and one group. `learners` are the rewards that go on learning during the run, by name.
    """

    def __init__(self, rewards: Sequence[NamedReward], timeout: float) -> None:
        self.names = tuple(reward.name for reward in rewards)
        if not rewards:
            raise RelgradError("no rewards; name at least one, for example `rewards: [{kind: exact}]`")
        for name, count in Counter(self.names).items():
            if count > 1:
                raise RelgradError(f"{count} rewards are called {name!r}; give each its own `name`")
        if not any(reward.weight for reward in rewards):
            raise RelgradError(f"every reward has weight 0 ({', '.join(self.names)}); give one that counts a weight")
        self._weights_R = torch.tensor([reward.weight for reward in rewards], dtype=torch.float64)
        functions: list[tuple[str, object]] = [(reward.name, reward.function) for reward in rewards]
        self.learners = {name: f for name, f in functions if isinstance(f, Learner) and f.learns}
        self._timeout = timeout
        self._loop = AsyncWorker()
        self._runners = self._started(rewards)
        self._hung: set[str] = set()

    def _started(self, rewards: Sequence[NamedReward]) -> list[Runner]:
        """The runner of every reward; processes start together. Raises RelgradError, and leaves none behind."""
        runners: list[Runner] = []
        try:
            for reward in rewards:
                if isinstance(reward.function, Isolated):
                    runners.append(_isolated(reward.name, reward.function, self._timeout))
                else:
                    runners.append(runner_of(Caller(reward.name, reward.function), self._timeout, self._loop))
            for runner in runners:
                if isinstance(runner, (IsolatedRunner, RayRunner)):
                    runner.wait()
        except BaseException:
            for runner in runners:
                runner.close()
            raise
        return runners

    @property
    def weights(self) -> list[float]:
        """The rewards' weights, in the order of their names."""
        weights: list[float] = self._weights_R.tolist()
        return weights

    def __call__(self, rollouts: Rollouts) -> RewardTable:
        """Reward every row. Raises RelgradError for wrong shapes and missing columns."""
        rows_of: dict[int, list[int]] = {}
        for row, group in enumerate(rollouts.group_B.tolist()):
            rows_of.setdefault(group, []).append(row)
        outputs = rollouts.outputs
        groups = [Group(rollouts.prompts[g], [outputs[row] for row in rows]) for g, rows in rows_of.items()]
        batch = _Batch()
        try:
            for runner in self._runners:
                runner.begin(groups, rollouts.policy_version)
            for number in sorted(range(len(self._runners)), key=lambda n: self._runners[n].meanwhile):
                for rows, answer in zip(rows_of.values(), self._runners[number].answers(), strict=True):
                    self._settle(batch, number, rows, answer)
        finally:
            for runner in self._runners:
                runner.cancel()
        return self._table(rollouts, batch)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Inside, rewards that learn score as they did before the run: what evaluations compare with."""
        try:
            for learner in self.learners.values():
                learner.fixed = True
            yield
        finally:
            for learner in self.learners.values():
                learner.fixed = False

    def close(self) -> None:
        """Let threads and processes end. They end with this process too."""
        for runner in self._runners:
            runner.close()

    def _settle(self, batch: _Batch, number: int, rows: Sequence[int], answer: Answer) -> None:
        """Put one reward's answer for one group where it belongs."""
        if isinstance(answer, Unanswered):
            batch.trace = batch.trace or answer.trace
            if answer.hung:
                self._say_hung(self.names[number])
            answer = [Score(math.nan, why=answer.why)] * len(rows)
        for row, score in zip(rows, answer, strict=True):
            batch.scores[row, number] = score

    def _say_hung(self, name: str) -> None:
        if name not in self._hung:
            self._hung.add(name)
            logger.warning(
                "reward %r gave no answer within %g s, and its completions count as unscored (raise reward_timeout if it only "
                "needs longer)",
                name,
                self._timeout,
            )

    def _table(self, rollouts: Rollouts, batch: _Batch) -> RewardTable:
        rewards = range(len(self.names))
        values = [[batch.scores[row, r].value for r in rewards] for row in range(rollouts.rows)]
        value_BR = torch.tensor(values, dtype=torch.float64).reshape(rollouts.rows, len(self.names))
        parts = tuple(self._parts(row, batch) for row in range(rollouts.rows))
        why = tuple(self._why(row, batch) for row in range(rollouts.rows))
        decision_BRT = self._decisions(rollouts, batch)
        return RewardTable(self.names, self._weights_R, value_BR, parts, why, decision_BRT, batch.trace)

    def _decisions(self, rollouts: Rollouts, batch: _Batch) -> Tensor | None:
        """Scores of single decisions [B, R, T], each at its decision's place; None where no reward gave any, or T is 0."""
        scores_of = {
            k: s.per_decision for k, s in batch.scores.items() if len(s.per_decision) and not math.isnan(s.value)
        }
        if not scores_of or not rollouts.mask_BT.shape[1]:  # finished texts alone have no place for them
            return None
        shape = (rollouts.rows, len(self.names), rollouts.mask_BT.shape[1])
        decision_BRT = torch.full(shape, math.nan, dtype=torch.float64)
        for (row, number), scores in scores_of.items():
            place_N = rollouts.mask_BT[row].nonzero()[:, 0]
            if len(scores) != len(place_N):
                raise RelgradError(
                    f"reward {self.names[number]!r} gave {len(scores)} scores per decision for a completion of "
                    f"{len(place_N)} decisions; give exactly one each, in order, or none at all"
                )
            score_N = torch.tensor([float(score) for score in scores], dtype=torch.float64)
            decision_BRT[row, number, place_N] = torch.where(score_N.isfinite(), score_N, math.nan)
        return decision_BRT

    def _parts(self, row: int, batch: _Batch) -> Mapping[str, float]:
        scores = ((name, batch.scores[row, r]) for r, name in enumerate(self.names))
        return {f"{name}/{part}": value for name, score in scores for part, value in score.parts.items()}

    def _why(self, row: int, batch: _Batch) -> str:
        scores = ((name, batch.scores[row, r]) for r, name in enumerate(self.names))
        return "; ".join(f"{name}: {s.why or 'unscored'}" for name, s in scores if math.isnan(s.value))
