"""All rewards of a recipe as one: every reward is called once per group, and what fails is a value, never a zero.

- An exception, or a call that outlasts the time-out, leaves that group's completions *unscored* by that reward: NaN in
  the table, the reason in `why`. So do None, NaN and infinities, completion by completion.
- A mistake in the recipe or in the reward's shape (a column that is not there, the wrong number of values, a value
  that is no number) raises RelgradError: it would not go away by itself.
- Whether a batch in which nothing was scored is a mistake is for the caller to judge, who knows all of it (core/tables.py).
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Learner, Reward
from relgrad.core.types import RewardTable, Rollouts, Score
from relgrad.rewards import _calling, _workers
from relgrad.rewards._calling import Caller, read_scores
from relgrad.rewards._workers import AsyncWorker, Hung, Worker

logger = logging.getLogger(__name__)


@runtime_checkable
class NamesRewards(Protocol):
    """A module whose rewards have names of their own, as functions do. Those of other modules are called after their kind."""

    def name_of(self, settings: Any) -> str:
        """What the reward with these settings is called."""
        ...


@dataclass(frozen=True)
class NamedReward:
    """A reward, the name it is logged under and its weight in the sum; weight 0 makes it a monitor."""

    name: str
    function: Reward
    weight: float = 1.0


@dataclass
class _Batch:
    """What has been learnt about one batch: scores by (row, reward), and the first failure's traceback."""

    scores: dict[tuple[int, int], Score] = field(default_factory=dict)
    trace: str = ""


@dataclass(frozen=True)
class _Call:
    """One reward (by number) for one group (its rows), ready to run, and the parts it will log."""

    reward: int
    rows: list[int]
    run: Callable[[], Any]
    parts: list[dict[str, float]]


class RewardSet:
    """Implements protocols.Rewards.

    Synchronous rewards run one after the other; asynchronous ones start first and run meanwhile, all groups at once.
    `timeout` is in seconds, for one reward and one group. `learners` are the rewards that go on learning during the run,
    by name.
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
        self._callers = [Caller(reward.name, reward.function) for reward in rewards]
        self._timeout = timeout
        self._worker = Worker()
        self._async_worker = AsyncWorker()
        self._hung: set[str] = set()

    def __call__(self, rollouts: Rollouts) -> RewardTable:
        """Reward every row. Raises RelgradError for wrong shapes and missing columns."""
        batch = _Batch()
        calls = self._calls(rollouts)
        started = [(call, self._async_worker.start(call.run)) for call in calls if self._callers[call.reward].is_async]
        deadline = time.monotonic() + self._timeout
        try:
            for call in calls:
                if not self._callers[call.reward].is_async:
                    self._settle(batch, call, partial(self._worker.call, call.run, self._timeout))
            for call, future in started:
                self._settle(batch, call, partial(self._collect, future, deadline))
        finally:
            for _, future in started:
                future.cancel()
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
        """Let the worker threads end (they are daemons, so this is only tidiness)."""
        self._worker.close()
        self._async_worker.close()

    def _calls(self, rollouts: Rollouts) -> list[_Call]:
        rows_of: dict[int, list[int]] = {}
        for row, group in enumerate(rollouts.group_B.tolist()):
            rows_of.setdefault(group, []).append(row)
        calls = []
        for number, caller in enumerate(self._callers):
            for group, rows in rows_of.items():
                outputs = [rollouts.outputs[row] for row in rows]
                run, parts = caller.bind(rollouts.prompts[group], outputs, rollouts.policy_version)
                calls.append(_Call(number, rows, run, parts))
        return calls

    def _collect(self, future: Future[Any], deadline: float) -> Any:
        return self._async_worker.result(future, max(0.0, deadline - time.monotonic()))

    def _settle(self, batch: _Batch, call: _Call, answer: Callable[[], Any]) -> None:
        """Turn the outcome of one call into scores."""
        name = self.names[call.reward]
        try:
            scores = read_scores(name, answer(), len(call.rows))
        except RelgradError:
            raise
        except Hung:
            self._say_hung(name)
            scores = [Score(math.nan, why=f"no answer within {self._timeout:g} s")] * len(call.rows)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and the like must not end the run either
            batch.trace = batch.trace or "".join(traceback.format_list(_frames(error)[-6:]))
            scores = [Score(math.nan, why=_reason(error))] * len(call.rows)
        for row, score, logged in zip(call.rows, scores, call.parts, strict=True):
            batch.scores[row, call.reward] = score._replace(parts={**logged, **score.parts})

    def _say_hung(self, name: str) -> None:
        if name not in self._hung:
            self._hung.add(name)
            logger.warning(
                "reward %r gave no answer within %g s; its call is left behind on its own thread and the completions "
                "count as unscored (raise reward_timeout if it only needs longer)",
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
        given = {k: s.per_decision for k, s in batch.scores.items() if len(s.per_decision) and not math.isnan(s.value)}
        if not given or not rollouts.mask_BT.shape[1]:  # finished texts alone have no place for them
            return None
        shape = (rollouts.rows, len(self.names), rollouts.mask_BT.shape[1])
        decision_BRT = torch.full(shape, math.nan, dtype=torch.float64)
        for (row, number), scores in given.items():
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


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The traceback from the reward's own code on."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if frame.filename in (_calling.__file__, _workers.__file__)]
    return frames[ours[-1] + 1 :] if ours else list(frames)


def _reason(error: BaseException) -> str:
    """The exception's type, message and the line of the reward that it passed through."""
    frames = _frames(error)
    where = f" ({Path(frames[0].filename).name}:{frames[0].lineno} in {frames[0].name})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
