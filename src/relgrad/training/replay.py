"""Replay: experience of the past mixed into the batch, a source of experience on top of another.

Two ways, `replay.keep` of a recipe's `grpo` section:

- `groups`: whole groups that had something to compare stand in the place of fresh ones. Less is sampled for as many updates.
- `solutions`: of every prompt the best completion so far is kept; a fresh group in which all rewards are equal, and lower, is
  given it as one more row, and has something to compare (as ReTool and LUFFY do with demonstrations).

Rows of the past were drawn by an older policy mu: every decision keeps log mu, and its loss is multiplied by
min(pi / mu, importance_sampling_cap), pi being the policy at the beginning of the batch (truncated importance sampling, Ionides
2008; per decision as in Yao et al. 2025). Experience older than `max_age` generation batches is forgotten.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relgrad.core.randomness import generator
from relgrad.core.tables import merge_tables, stack
from relgrad.core.types import Experience
from relgrad.training.credit import give_credit
from relgrad.training.experience import Collected, Fresh
from relgrad.training.kept_experience import load_parts, save_parts
from relgrad.training.settings import GrpoSettings, ReplaySettings


@dataclass(frozen=True)
class Memory:
    """Rows of one group of a part that was drawn for generation batch `drawn`. `key` says of which prompt, `reward` how good."""

    part: int
    rows: tuple[int, ...]
    key: str
    reward: float
    drawn: int


def drawn_under(part: Experience) -> Tensor:
    """The log-probabilities under which the rows were drawn: another proposal's, where there was one, else the policy's of then."""
    return part.rollouts.behaviour_logp_BT if part.proposal_logp_BT is None else part.proposal_logp_BT


class Replay:
    """Implements experience.Source. `parts` holds the past that `memories` still need, by a number of its own."""

    def __init__(self, fresh: Fresh, settings: GrpoSettings, seed: int) -> None:
        assert settings.replay is not None
        self.fresh, self.settings, self.seed = fresh, settings, seed
        self.replay: ReplaySettings = settings.replay
        self.parts: dict[int, Experience] = {}
        self.memories: list[Memory] = []
        self.next_part = 0
        self._before = (self.parts, self.memories, self.next_part)

    def draw(self, number: int, prompts: int) -> Collected:
        """Generation batch `number`: fresh experience and the past that fits; then remember the fresh."""
        self._before = (dict(self.parts), list(self.memories), self.next_part)
        self._forget(number)
        most = max(round(self.replay.share * prompts), 1)
        if self.replay.keep == "groups":
            chosen = self._some(number, most)
            collected = self.fresh.draw(number, prompts - len(chosen))
            first = 1 + int(max(int(part.group_B.max()) for part in collected.parts))
            joined = {memory: first + place for place, memory in enumerate(chosen)}
        else:
            collected = self.fresh.draw(number, prompts)
            joined = self._solutions(collected, most)
        groups, rewards = self._credited(collected)
        learnt = self._worth_remembering(collected, groups, rewards, number)
        self._add(collected, joined, number)
        self._remember(learnt, number)
        collected.metrics["replay/groups"] = float(len(joined))
        collected.metrics["replay/kept"] = float(len(self.memories))
        return collected

    # ------------------------------------------------------------------ the past that joins

    def _some(self, number: int, most: int) -> list[Memory]:
        """At most so many memories, drawn without preference."""
        order = torch.randperm(len(self.memories), generator=generator(self.seed, "replay", number))
        return [self.memories[place] for place in order[:most].tolist()]

    def _solutions(self, collected: Collected, most: int) -> dict[Memory, int]:
        """For groups whose rows are all equally bad: the better completion that is remembered of their prompt."""
        by_prompt = {memory.key: memory for memory in self.memories}
        group_B, reward_B = self._credited(collected)
        joined: dict[Memory, int] = {}
        for group, key in self._keys(collected).items():
            reward_K = reward_B[(group_B == group) & collected.keep_B]
            reward_K = reward_K[~reward_K.isnan()]
            memory = by_prompt.get(key)
            if memory is None or not len(reward_K) or len(joined) == most:
                continue
            if bool(reward_K.max() == reward_K.min()) and float(reward_K.max()) < memory.reward:
                joined[memory] = group
        return joined

    def _add(self, collected: Collected, joined: dict[Memory, int], number: int) -> None:
        """Put the memories' rows into the batch as rows of the groups given; the other rows of their parts stay out of it."""
        spare = 1 + max([int(part.group_B.max()) for part in collected.parts] + list(joined.values()))
        for number_of_part in sorted({memory.part for memory in joined}):
            part = self.parts[number_of_part]
            keep_B = torch.zeros(part.rollouts.rows, dtype=torch.bool)
            group_B = part.rollouts.group_B + spare
            spare += len(part.rollouts.prompts)
            for memory, group in joined.items():
                if memory.part == number_of_part:
                    rows = torch.tensor(memory.rows)
                    keep_B[rows], group_B[rows] = True, group
            drawn = next(memory.drawn for memory in joined if memory.part == number_of_part)
            old = dataclasses.replace(
                part,
                group_B=group_B,
                source="replay",
                age_B=torch.full((part.rollouts.rows,), number - drawn),
                proposal_logp_BT=drawn_under(part),
            )
            collected.parts.append(old)
            collected.keep_B = torch.cat([collected.keep_B, keep_B])

    # ------------------------------------------------------------------ what is remembered

    def _credited(self, collected: Collected) -> tuple[Tensor, Tensor]:
        """(group, total reward) [B] of the collected rows."""
        group_B = torch.cat([part.group_B for part in collected.parts])
        mask_BT = stack([part.rollouts.mask_BT for part in collected.parts])
        table = merge_tables([part.rewards for part in collected.parts], mask_BT.shape[1]).only(collected.keep_B)
        return group_B, give_credit(self.settings, table, group_B, mask_BT).reward_B

    def _keys(self, collected: Collected) -> dict[int, str]:
        """Which prompt a group is of."""
        return {
            group: f"{part.rollouts.prompts[own].id} {part.rollouts.prompts[own].text}"
            for part in collected.parts
            for group, own in zip(part.group_B.tolist(), part.rollouts.group_B.tolist(), strict=True)
        }

    def _worth_remembering(
        self, collected: Collected, group_B: Tensor, reward_B: Tensor, number: int
    ) -> list[tuple[Experience, Memory]]:
        """New groups with spread, or the best row of each, with the part they lie in."""
        learnt = []
        keys, first = self._keys(collected), 0
        for part in collected.parts:
            own_B = torch.arange(first, first + part.rollouts.rows)
            first += part.rollouts.rows
            if bool(part.age_B.any()):
                continue
            for group in part.group_B.unique().tolist():
                rows = (part.group_B == group).nonzero()[:, 0]
                reward_K = reward_B[own_B[rows]]
                scored = ~reward_K.isnan()
                worst = reward_B[group_B == group]
                worst = worst[~worst.isnan()].min() if bool(scored.any()) else reward_K.new_tensor(torch.nan)
                if not bool(scored.any()) or bool(reward_K[scored].max() <= worst):
                    continue
                if self.replay.keep == "solutions":
                    rows = rows[reward_K.nan_to_num(-torch.inf).argmax()][None]
                best = float(reward_K[scored].max())
                learnt.append((part, Memory(0, tuple(rows.tolist()), keys[group], best, number)))
        return learnt

    def remember(self, collected: Collected, number: int) -> None:
        """Take in what others have added to batch `number` since it was drawn (a search, say)."""
        group_B, reward_B = self._credited(collected)
        self._remember(self._worth_remembering(collected, group_B, reward_B, number), number)

    def _remember(self, learnt: list[tuple[Experience, Memory]], number: int) -> None:
        """Take them in; of a prompt only the best solution stays, and of all the newest."""
        numbers: dict[int, int] = {}
        for part, memory in learnt:
            if self.replay.keep == "solutions":
                before = next((m for m in self.memories if m.key == memory.key), None)
                if before is not None and before.reward > memory.reward:
                    continue
                self.memories = [m for m in self.memories if m.key != memory.key]
            if id(part) not in numbers:
                numbers[id(part)] = self.next_part
                self.parts[self.next_part] = part
                self.next_part += 1
            self.memories.append(dataclasses.replace(memory, part=numbers[id(part)]))
        self._forget(number + 1)

    def _forget(self, number: int) -> None:
        """Drop what will be too old for generation batch `number`, what is too much, and parts that nothing needs."""
        young = [memory for memory in self.memories if number - memory.drawn <= self.replay.max_age]
        self.memories = young[-self.replay.capacity :]
        needed = {memory.part for memory in self.memories}
        self.parts = {name: part for name, part in self.parts.items() if name in needed}

    def undo(self) -> None:
        """See experience.Source."""
        self.parts, self.memories, self.next_part = self._before

    # ------------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """Write all that is remembered; every process calls it, the first one writes."""
        numbers = sorted(self.parts)
        save_parts([self.parts[n] for n in numbers], folder, self.fresh.ranks)
        if self.fresh.ranks.first:
            plain = {
                "parts": numbers, "next_part": self.next_part,
                "memories": [dataclasses.asdict(memory) for memory in self.memories],
            }  # fmt: skip
            (folder / "replay.json").write_text(json.dumps(plain), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        plain = json.loads((folder / "replay.json").read_text(encoding="utf-8"))
        self.parts = dict(zip(plain["parts"], load_parts(folder, self.fresh.ranks), strict=True))
        self.memories = [Memory(**{**memory, "rows": tuple(memory["rows"])}) for memory in plain["memories"]]
        self.next_part = plain["next_part"]
