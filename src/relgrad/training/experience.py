"""Sources of experience: where a generation batch comes from. The learner (grpo.py) does not know which one it has.

`Fresh` is the default: the policy writes, or a server in its place (remote.py), the rewards judge, and groups without spread may
be written again. replay.py mixes the past in. A source of your own offers the same methods; Grpo takes it as `source`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from relgrad.core.protocols import Policy, Rewards
from relgrad.core.randomness import Draws, Randomness, draw_epochs, generator
from relgrad.core.ranks import Ranks
from relgrad.core.tables import merge_tables, stack
from relgrad.core.types import Experience, Output, Prompt, Rollouts
from relgrad.training.credit import give_credit
from relgrad.training.settings import GrpoSettings


@dataclass
class Collected:
    """One generation batch before credit: its parts, which rows count (`keep_B`, over all parts), and figures to log."""

    parts: list[Experience]
    keep_B: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Where generation batches come from. `save` and `load` keep what the next batches depend on beside the weights."""

    def draw(self, number: int, prompts: int) -> Collected:
        """Generation batch `number` with `prompts` prompts; equal in all processes but for the traces."""
        ...

    def undo(self) -> None:
        """Forget the last `draw`: the step that asked for it failed, and will be tried again."""
        ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class PromptStream:
    """Training prompts in an endless row of epochs; `cursor` of them were taken."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts, self.seed, self.cursor = prompts, seed, 0

    def take(self, count: int) -> list[Prompt]:
        chosen = draw_epochs(self.prompts, self.cursor, count, self.seed)
        self.cursor += count
        return chosen


class Writer(Protocol):
    """Who writes completions. `name` is the `source` of their experience."""

    @property
    def name(self) -> str: ...

    def prepare(self) -> None:
        """Called by all processes before every generation batch."""
        ...

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy.sample."""
        ...


class ByItself:
    """A policy writes itself."""

    name = "policy"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def prepare(self) -> None:
        """Nothing: the policy is ready."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy.sample."""
        return self.policy.sample(prompts, group_size, randomness)


class Fresh:
    """What the current policy writes, rewarded; every process has the completions of its share of the prompts written.

    `writer` writes in the policy's place (remote.py).
    """

    def __init__(
        self,
        policy: Policy,
        stream: PromptStream,
        rewards: Rewards,
        settings: GrpoSettings,
        seed: int,
        ranks: Ranks,
        writer: Writer | None = None,
    ) -> None:
        self.writer: Writer = writer or ByItself(policy)
        self.stream, self.rewards = stream, rewards
        self.settings, self.seed, self.ranks = settings, seed, ranks

    def draw(self, number: int, prompts: int) -> Collected:
        """Sample and reward `prompts` groups; those without spread are replaced up to `max_resamples` times."""
        parts: list[Experience] = []
        keep: list[Tensor] = []
        clock = {"sample": 0.0, "reward": 0.0}
        count, resampled, groups = prompts, 0, 0
        self.writer.prepare()
        for attempt in range(self.settings.max_resamples + 1):
            drawn = self._write(count, generator(self.seed, "sample", number, attempt), groups, clock)
            parts += drawn
            groups += count
            flat_B = flat_rows(drawn, self.settings)
            rows = len(flat_B)
            spare = int(flat_B.sum()) // self.settings.num_generations
            if not spare or attempt == self.settings.max_resamples:
                keep.append(torch.ones(rows, dtype=torch.bool))
                break
            keep.append(~flat_B)
            resampled += spare
            count = spare
        metrics = {f"time/{name}": seconds for name, seconds in clock.items()}
        if self.settings.max_resamples:
            metrics["groups_resampled"] = float(resampled)
        return Collected(parts, torch.cat(keep), metrics)

    def undo(self) -> None:
        """Nothing; see `save`."""

    def save(self, folder: Path) -> None:
        """Nothing: the next batch depends on the loop's counters alone."""

    def load(self, folder: Path) -> None:
        """Nothing; see `save`."""

    def _write(
        self, count: int, randomness: torch.Generator, first_group: int, clock: dict[str, float]
    ) -> list[Experience]:
        """The groups of the next `count` prompts, one part for every process that wrote any."""
        prompts, draws = self.stream.take(count), Draws.of(randomness, count)
        share = self.ranks.share(count)
        own: list[Experience] = []

        def write() -> Experience | None:
            if not len(share):
                return None
            own_draws = draws.part(share.start, len(share))
            own.append(self._experience(prompts[share.start : share.stop], own_draws, first_group + share.start, clock))
            return elsewhere(own[0], prompts=())  # the others have the prompts

        parts = []
        for rank, part in enumerate(self.ranks.collect(write)):
            if part is not None:
                written = Ranks(rank, self.ranks.size).share(count)
                received = elsewhere(part, tuple(prompts[written.start : written.stop]))
                parts.append(own[0] if rank == self.ranks.rank else received)
        return parts

    def _experience(
        self, prompts: Sequence[Prompt], draws: Draws, first_group: int, clock: dict[str, float]
    ) -> Experience:
        """Groups of these prompts, sampled and rewarded."""
        started = time.perf_counter()
        rollouts = self.writer.sample(prompts, self.settings.num_generations, draws)
        sampled = time.perf_counter()
        table = self.rewards(rollouts)
        clock["sample"] += sampled - started
        clock["reward"] += time.perf_counter() - sampled
        return Experience(
            rollouts=rollouts,
            rewards=table,
            group_B=rollouts.group_B + first_group,
            source=self.writer.name,
            age_B=torch.zeros(rollouts.rows, dtype=torch.int64),
            proposal_logp_BT=rollouts.behaviour_logp_BT if rollouts.foreign else None,
        )


def elsewhere(part: Experience, prompts: tuple[Prompt, ...]) -> Experience:
    """The part as other processes hold it: they know what was written and what it earned, and do not score it."""
    outputs = tuple(Output(output.text, output.ids) for output in part.rollouts.outputs)
    rollouts = dataclasses.replace(part.rollouts, prompts=prompts, outputs=outputs, trace={})
    return dataclasses.replace(part, rollouts=rollouts, local=False)


def flat_rows(parts: Sequence[Experience], settings: GrpoSettings) -> Tensor:
    """bool [B]: rows of groups without spread, over all the parts' rows."""
    group_B = torch.cat([part.group_B for part in parts])
    _, group_B = group_B.unique(return_inverse=True)
    mask_BT = stack([part.rollouts.mask_BT for part in parts])
    table = merge_tables([part.rewards for part in parts], mask_BT.shape[1])
    return give_credit(settings, table, group_B, mask_BT).flat_G[group_B]
