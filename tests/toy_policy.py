"""A complete policy in a table: one row of logits per (prompt, prefix). Exact, instant, and small enough to enumerate.

Vocabulary: 0 ends the row, 1 writes "a", 2 writes "b". A row has at most three decisions, so that a prompt has 15
trajectories: "", "a", "b", four of two letters, eight of three (cut off by the length limit, without an end).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Toy
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Output, Prompt, Rollouts
from relgrad.laws.categorical import Truncation, log_probs, sample
from relgrad.objectives.divergences import categorical_kl

END, LETTERS, MAX_DECISIONS = 0, " ab", 3
STATES = 1 + 2 + 4  # prefixes of at most two letters; the state after letter v in state s is 2 s + v


class TablePolicy:
    """pi(token | prompt, prefix) = the categorical law at `table_PSV[prompt, prefix]`."""

    law: Literal["exact", "surrogate"] = "exact"

    def __init__(self, prompts: Sequence[str], truncation: Truncation, seed: int) -> None:
        self.version = 0
        self.max_decisions = MAX_DECISIONS
        self.truncation = truncation
        self.index = {text: i for i, text in enumerate(prompts)}
        start_PSV = torch.randn(len(prompts), STATES, len(LETTERS), generator=torch.Generator().manual_seed(seed))
        self.table_PSV = torch.nn.Parameter(start_PSV)
        self.start_PSV = start_PSV.clone()
        self.speaking_PSV: Tensor = self.table_PSV

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        group_B = torch.arange(len(prompts)).repeat_interleave(group_size)
        uniform_BT = Draws.of(randomness, len(prompts)).rand(group_size, MAX_DECISIONS).flatten(0, 1)

        def draw(logits_NV: Tensor, rows_N: Tensor, step: int) -> tuple[Tensor, Tensor]:
            token_N, logp_N, _ = sample(logits_NV, self.truncation, uniform_N=uniform_BT[rows_N, step])
            return token_N, logp_N

        return self.roll(prompts, group_B, draw)

    def enumerate(self, prompt: Prompt) -> Rollouts:
        """All trajectories that the truncated law can produce, one row each."""
        letters = range(1, len(LETTERS))
        paths = [(*p, END) for n in range(MAX_DECISIONS) for p in itertools.product(letters, repeat=n)]
        paths += list(itertools.product(letters, repeat=MAX_DECISIONS))
        path_BT = torch.tensor([path + (END,) * (MAX_DECISIONS - len(path)) for path in paths])

        possible_B = torch.ones(len(paths), dtype=torch.bool)

        def forced(logits_NV: Tensor, rows_N: Tensor, step: int) -> tuple[Tensor, Tensor]:
            token_N = path_BT[rows_N, step]
            logp_N = log_probs(logits_NV, self.truncation).gather(-1, token_N[:, None])[:, 0]
            possible_B[rows_N] &= logp_N.isfinite()
            return token_N, logp_N.nan_to_num(neginf=0.0)

        everything = self.roll([prompt], torch.zeros(len(paths), dtype=torch.int64), forced)
        return take(everything, possible_B.nonzero()[:, 0])

    @torch.no_grad()
    def roll(self, prompts: Sequence[Prompt], group_B: Tensor, choose: Callable) -> Rollouts:
        """Walk all rows from the empty prefix; `choose(logits, rows, step)` gives tokens and log-probs."""
        rows = len(group_B)
        prompt_B = torch.tensor([self.index[p.text] for p in prompts])[group_B]
        token_BT = torch.zeros(rows, MAX_DECISIONS, dtype=torch.int64)
        state_BT, mask_BT = token_BT.clone(), torch.zeros(rows, MAX_DECISIONS, dtype=torch.bool)
        logp_BT = torch.zeros(rows, MAX_DECISIONS)
        support_BTV = torch.zeros(rows, MAX_DECISIONS, len(LETTERS), dtype=torch.bool)
        state_B, live_B = torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.bool)
        for step in range(MAX_DECISIONS):
            at_N = live_B.nonzero()[:, 0]
            logits_NV = self.table_PSV[prompt_B[at_N], state_B[at_N]]
            token_BT[at_N, step], logp_BT[at_N, step] = choose(logits_NV, at_N, step)
            support_BTV[at_N, step] = self.truncation.support(logits_NV)
            state_BT[at_N, step], mask_BT[at_N, step] = state_B[at_N], True
            live_B = live_B & (token_BT[:, step] != END)
            state_B = torch.where(live_B, 2 * state_B + token_BT[:, step], state_B)
        return Rollouts(
            prompts=tuple(prompts),
            group_B=group_B,
            behaviour_logp_BT=logp_BT,
            mask_BT=mask_BT,
            size_BT=mask_BT.long(),
            outputs=tuple(Output("".join(LETTERS[v] for v in row if v), tuple(row)) for row in token_BT.tolist()),
            stop=tuple("length" if live else "eos" for live in live_B.tolist()),
            policy_version=self.version,
            trace={"prompt_B": prompt_B, "state_BT": state_BT, "token_BT": token_BT, "support_BTV": support_BTV},
        )

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        row_N, step_N = cells_N2.unbind(-1)
        trace = rollouts.trace
        place = trace["prompt_B"][row_N], trace["state_BT"][row_N, step_N]
        support_NV = trace["support_BTV"][row_N, step_N]
        logp_NV = log_probs(self.speaking_PSV[place], self.truncation, support_NV)
        p_NV = logp_NV.exp()
        return CellScores(
            logp_N=logp_NV.gather(-1, trace["token_BT"][row_N, step_N][:, None])[:, 0],
            entropy_N=-(p_NV * torch.where(p_NV > 0, logp_NV, 0.0)).sum(-1) if entropy else None,
            kl_N=categorical_kl(logp_NV, log_probs(self.start_PSV[place], self.truncation, support_NV))
            if reference_kl
            else None,
        )

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        return list(rollouts.cells(rows).split(max(budget, 1)))

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.speaking_PSV = self.start_PSV
        try:
            yield
        finally:
            self.speaking_PSV = self.table_PSV

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield "table_PSV", self.table_PSV

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"table_PSV": self.table_PSV.detach()}, folder / "table.safetensors")

    def load(self, folder: Path) -> None:
        path = folder / "table.safetensors"
        if not path.exists():
            raise RelgradError(f"TablePolicy: no table.safetensors in {folder}")
        table_PSV = load_file(path)["table_PSV"]
        if table_PSV.shape != self.table_PSV.shape:
            raise RelgradError(f"TablePolicy: {path} has shape {table_PSV.shape}, need {self.table_PSV.shape}")
        with torch.no_grad():
            self.table_PSV.copy_(table_PSV)


def take(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    """The given rows of a table policy's rollouts."""
    return replace(
        rollouts,
        group_B=rollouts.group_B[rows],
        behaviour_logp_BT=rollouts.behaviour_logp_BT[rows],
        mask_BT=rollouts.mask_BT[rows],
        size_BT=rollouts.size_BT[rows],
        outputs=tuple(rollouts.outputs[i] for i in rows.tolist()),
        stop=tuple(rollouts.stop[i] for i in rows.tolist()),
        trace={name: tensor[rows] for name, tensor in rollouts.trace.items()},
    )


def share_of_b(output: Output) -> float:
    """The share of the three places that hold a "b"."""
    return output.text.count("b") / MAX_DECISIONS


def untouched(table: TablePolicy, truncation: Truncation, rollouts: Rollouts) -> Tensor:
    """[B, T]: what the table itself says of the tokens, under the given law."""
    trace = rollouts.trace
    logits_BTV = table.table_PSV[trace["prompt_B"][:, None], trace["state_BT"]]
    logp_NV = log_probs(logits_BTV.flatten(0, 1), truncation)
    return logp_NV.gather(-1, trace["token_BT"].flatten()[:, None]).view(rollouts.mask_BT.shape)


def toy(truncation: Truncation, policy: Callable[..., TablePolicy] = TablePolicy) -> Toy:
    """A table over two prompts that is rewarded for writing "b"."""
    table = policy(("x", "y"), truncation, seed=3)
    return Toy(
        policy=table,
        prompts=(Prompt("x", id=0), Prompt("y", id=1)),
        enumerate=table.enumerate,
        keys=lambda rollouts: [(o.text, stop) for o, stop in zip(rollouts.outputs, rollouts.stop, strict=True)],
        reward=share_of_b,
        untouched=lambda rollouts: untouched(table, truncation, rollouts),
    )


def toys() -> dict[str, Callable[[], Toy]]:
    """Without truncation, and with every kind of it."""
    return {
        "plain": lambda: toy(Truncation()),
        "top_p": lambda: toy(Truncation(temperature=1.3, top_p=0.8)),
        "top_k": lambda: toy(Truncation(temperature=0.7, top_k=2)),
    }
