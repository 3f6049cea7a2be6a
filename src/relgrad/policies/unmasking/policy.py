r"""Masked diffusion over several steps: prompt and masks in, text out; one decision is one step, all that it reveals jointly.

    log pi(x_{t+1} | x_t) = log P(which positions are revealed, and what they become | x_t)         (laws/unmasking/)

After the clean prompt come `max_completion_length` masked positions in blocks, which are written one after the other; the text ends
at the first end of sequence. Or the prompt's own masks are written (`writes: holes`). Steps of many texts, at different times, go
through the network together, and logits are computed where the law reads them and nowhere else.

*What follows the end.* A step reveals positions wherever they are, so what stands behind the first end of sequence belongs to the
decisions and counts in their log-probability, though neither to the text nor to its length. A text is finished as soon as a whole
block before the current one has an end: later blocks are never written, and are no decisions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop, SupervisedLoss
from relgrad.estimators.exact import Exact
from relgrad.estimators.interface import Wanted
from relgrad.estimators.kinds import surrogate_of
from relgrad.laws.categorical import Truncation
from relgrad.laws.precision import ROUNDING
from relgrad.networks.causal.load import DTYPES
from relgrad.networks.masked.interface import PROMPT
from relgrad.networks.weights.facts import count_parameters, truncation_facts
from relgrad.networks.weights.keeper import Keeper
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.unmasking import film
from relgrad.policies.unmasking.drafts import filled
from relgrad.policies.unmasking.engine import Engine
from relgrad.policies.unmasking.open import open_parts
from relgrad.policies.unmasking.parts import Opened
from relgrad.policies.unmasking.rows import NO_PLACE, row_of, rows_of, written_into
from relgrad.policies.unmasking.schedule import Schedule
from relgrad.policies.unmasking.settings import Settings
from relgrad.policies.unmasking.steps import Steps
from relgrad.policies.unmasking.supervised.masked_loss import LogitsAt, masked_loss
from relgrad.policies.unmasking.supports import Log
from relgrad.policies.unmasking.surrogate_rollouts import is_surrogate, surrogate_rollouts, whole_rows
from relgrad.policies.unmasking.symbols import text_until_end
from relgrad.text import answer
from relgrad.trajectories.plan import in_chunks
from relgrad.trajectories.states import pack_states
from relgrad.trajectories.trained_steps import TrainedSteps, all_steps, random_steps, tokens_per_step


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> UnmaskingPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = UnmaskingPolicy(open_parts(settings, seed, start), settings)
    if reference:
        policy.freeze_reference()
    return policy


class UnmaskingPolicy:
    """See the module. Trace: prompts (rows.py), states (trajectories/states.py), order_BE int16 [B, E] where the order within a
    step counts, and supports (supports.py) where tokens are truncated.

    It is composed of a network, its symbols and how they are stored (`parts`), the steps that follow from them (`steps`), an
    estimator of log-probabilities (`exact`, and in training a `surrogate` where the recipe asks for one) and a keeper of weights
    (`weights`). Where it is judged, log-probabilities are exact.
    """

    def __init__(self, parts: Opened, settings: Settings) -> None:
        self.parts, self.settings = parts, settings
        self.network, self.symbols = parts.network, parts.symbols
        self.notes, self._check = parts.notes, parts.check
        self.version = 0
        self.device = self.network.device
        truncation = Truncation(settings.temperature, settings.top_k, settings.top_p)
        self.engine = Engine(self.network, self._drawable(), settings.law.of, truncation, settings.block)
        self.steps = self._steps(settings.sampling_steps)
        self.exact, self.surrogate = Exact(), surrogate_of(settings.estimator)
        self.costly_entropy = self.surrogate is not None
        self.weights = Keeper(self.network.module, settings.ema_decay)
        self.number_of_steps = settings.sampling_steps
        self.max_decisions = self._decisions()
        self._judged = False

    def _decisions(self) -> int:
        """The decisions of the longest row: its steps, or what the surrogate calls a decision."""
        if self.surrogate is None:
            return self.number_of_steps
        return self.surrogate.plan.decisions(self.settings.max_completion_length)

    def _drawable(self) -> Tensor:
        """int64 [K]: ids that may be written; a hole is never an end."""
        drawable_K = self.symbols.drawable_K
        return drawable_K if self.settings.writes == "answer" else drawable_K[drawable_K != self.symbols.end_id]

    def _steps(self, steps: int) -> Steps:
        settings = self.settings
        schedule = Schedule(
            settings.block,
            steps // settings.blocks,
            settings.law.shares,
            self.symbols.mask_id,
            self.symbols.end_ids if settings.writes == "answer" else (),
        )
        return Steps(self.engine, schedule)

    @property
    def law(self) -> Literal["exact", "surrogate"]:
        """What is trained by."""
        return self.exact.law if self.surrogate is None else self.surrogate.law

    @property
    def estimator_kind(self) -> str:
        """See protocols.Estimates."""
        return self.settings.estimator.kind

    @property
    def own_loss(self) -> str | None:
        """See protocols.Estimates."""
        return None if self.surrogate is None else self.surrogate.plan.own_loss

    # ------------------------------------------------------------------ sampling

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy. Two uniform numbers per (row, step, position)."""
        draws = Draws.of(randomness, len(prompts))
        with torch.no_grad():
            with self.engine.writing():
                rollouts = self._written(prompts, group_size, draws)
            if self.surrogate is None or self._judged:
                return rollouts
            return surrogate_rollouts(rollouts, self.surrogate, self.steps, self.symbols.mask_id, draws)

    def _written(self, prompts: Sequence[Prompt], group_size: int, draws: Draws) -> Rollouts:
        """The texts, with the exact log-probabilities of their steps."""
        steps = self.number_of_steps
        trace = self.read(prompts)
        group_B = torch.arange(len(prompts)).repeat_interleave(group_size)
        there_BE = trace["place_GE"][group_B] != NO_PLACE
        trained = self._trained(draws, group_size)
        states = [torch.where(there_BE, self.symbols.mask_id, self.symbols.end_id)]
        logp_BT, mask_BT = torch.zeros(trained.mask_BT.shape), trained.mask_BT.clone()
        order_BE, log = torch.zeros_like(states[0]), Log(len(group_B), steps)
        for step in range(steps):
            uniform_BE2 = self._uniform(draws, trace, group_size)
            after = self.steps.advance(trace, group_B, states[-1], step, uniform_BE2)
            order_BE = torch.where(after.state_RE == states[-1], order_BE, after.order_RE)
            states.append(after.state_RE)
            logp_BT[:, step] = after.logp_R
            mask_BT[:, step] &= after.live_R
            if after.support is not None:
                log.add(after.row_C, step, after.support)
        trace |= pack_states(states, self.symbols.size)
        if self.engine.law.ordered:
            trace["order_BE"] = order_BE.to(torch.int16)
        if self.engine.law.truncation.truncates:
            trace |= log.trace()
        rollouts = self._rollouts(tuple(prompts), group_B, states[-1], logp_BT, mask_BT, trained.stands_for, trace)
        return self.drafted(rollouts, states) if self.settings.drafts else rollouts

    def drafted(self, rollouts: Rollouts, states: Sequence[Tensor]) -> Rollouts:
        """The same rollouts, whose outputs have drafts; `states`, T + 1 tensors [B, E], are those that they went through."""
        trace, group_B, mask_id = dict(rollouts.trace), rollouts.group_B, self.symbols.mask_id
        at_state = [
            self.texts(trace, group_B, filled(self.engine, trace, group_B, state_BE, mask_id))[0]
            for state_BE in states[:-1]
        ]
        at_state.append(rollouts.outputs)
        outputs = []
        for row, output in enumerate(rollouts.outputs):
            after = [step + 1 for step in rollouts.mask_BT[row].nonzero()[:, 0].tolist()]
            outputs.append(replace(output, drafts=tuple(at_state[state][row].text for state in (0, *after))))
        return replace(rollouts, outputs=tuple(outputs))

    def _rollouts(
        self,
        prompts: tuple[Prompt, ...],
        group_B: Tensor,
        last_BE: Tensor,
        logp_BT: Tensor,
        mask_BT: Tensor,
        stands_for: float,
        trace: dict[str, Tensor],
    ) -> Rollouts:
        outputs, stops, length_B = self.texts(trace, group_B, last_BE)
        return Rollouts(
            prompts=prompts,
            group_B=group_B,
            behaviour_logp_BT=logp_BT * mask_BT,
            mask_BT=mask_BT,
            size_BT=tokens_per_step(mask_BT, length_B),
            outputs=outputs,
            stop=stops,
            policy_version=self.version,
            trace=trace,
            # rows of other lengths beside it round a row differently; in 16 bits that is more than rounding noise
            foreign=self.settings.dtype == "bfloat16",
            stands_for=stands_for,
        )

    def read(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The prompts as rows.py keeps them. Raises RelgradError for one that cannot be read or is too long."""
        settings = self.settings
        rows = [
            row_of(prompt, self.symbols, settings.writes, settings.max_completion_length, self.network.length)
            for prompt in prompts
        ]
        return rows_of(rows, self.symbols.end_id)

    def texts(
        self, trace: dict[str, Tensor], group_B: Tensor, last_BE: Tensor
    ) -> tuple[tuple[Output, ...], tuple[Stop, ...], Tensor]:
        """(what a reward reads, why each row ended, int64 [B] tokens of each), from the last states."""
        if self.settings.writes == "holes":
            whole = written_into(trace, group_B, last_BE).tolist()
            rows = [ids[:length] for ids, length in zip(whole, trace["length_G"][group_B].tolist(), strict=True)]
            complete: Stop = "eos"
            written_B = (trace["place_GE"][group_B] != NO_PLACE).sum(-1)
            return (
                tuple(Output(self.symbols.decode(ids), tuple(ids)) for ids in rows),
                (complete,) * len(rows),
                written_B,
            )
        written = [text_until_end(ids, self.symbols) for ids in last_BE.tolist()]
        stops: tuple[Stop, ...] = tuple("eos" if ended else "length" for _, _, ended in written)
        length_B = torch.tensor([len(ids) + ended for _, ids, ended in written])
        return tuple(Output(text, ids) for text, ids, _ in written), stops, length_B

    def _uniform(self, draws: Draws, trace: dict[str, Tensor], each: int) -> Tensor:
        """[B, E, 2]: two numbers for every written position, a prompt's from its own."""
        there_GE = trace["place_GE"] != NO_PLACE
        uniform_GEK2 = torch.zeros(*there_GE.shape, each, 2)
        uniform_GEK2[there_GE] = draws.rand_each(there_GE.sum(-1).tolist(), each, 2)
        return uniform_GEK2.transpose(1, 2).flatten(0, 1)

    def _trained(self, draws: Draws, each: int) -> TrainedSteps:
        """Which steps of every row are trained; all of them where the policy is judged."""
        settings, steps = self.settings, self.number_of_steps
        if not self._judged and settings.train_steps is not None:
            return random_steps(draws, each, steps, settings.train_steps)
        return all_steps(len(draws) * each, steps)

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """`group_size` texts per prompt as plain data, written as the policy is judged; see film.py."""
        begun = time.perf_counter()
        with self.evaluation():
            rollouts = self.sample(prompts, group_size, randomness)
            films = film.describe(rollouts, self.engine, self.symbols)
        seconds = time.perf_counter() - begun
        return [{**one, "seconds": seconds} for one in films]

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        settings = self.settings
        steps = f"{settings.sampling_steps} for {settings.max_completion_length} positions"
        steps = f"at most {steps}" if self.engine.law.adaptive else steps
        steps += f", {settings.train_steps} of them trained" if settings.train_steps else ""
        if settings.evaluation_steps not in (None, settings.sampling_steps):
            steps += f"; judged in {settings.evaluation_steps}"
        blocks = f" in {settings.blocks} blocks of {settings.block}" if settings.blocks > 1 else ""
        facts = {
            "Parameters": f"{count_parameters(self.network.module):,}",
            "Steps": steps,
            "Order": settings.law.order.replace("_", " ") + blocks,
        }
        return facts | truncation_facts(settings.temperature, settings.top_p, settings.top_k)

    # ------------------------------------------------------------------ scoring

    @property
    def rounding(self) -> float:
        """See protocols.Rounds: of a step of a whole block, whose errors add up like a random walk."""
        return ROUNDING[DTYPES[self.settings.dtype]] * math.sqrt(self.settings.block)

    @property
    def jumps(self) -> bool:
        """See protocols.Jumps."""
        return self.settings.law.jumps

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Cells in order, as many together as keep their rows' tokens near `budget`: every cell is a row of the forward pass.

        A surrogate's rows stay whole, since their decisions have passes in common; every pass is a row of the forward pass.
        """
        cells_N2 = rollouts.cells(rows)
        if is_surrogate(rollouts):
            return whole_rows(rollouts, cells_N2, budget)
        return in_chunks(cells_N2, rollouts.trace["length_G"][rollouts.group_B[cells_N2[:, 0]]], budget)

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Any cells, trained or not: steps of different rows at different times go together."""
        wanted = Wanted(entropy, self.reference if reference_kl else None)
        if self.surrogate is not None and is_surrogate(rollouts):
            return self.surrogate.score(self.steps, rollouts, cells_N2, wanted)
        steps = rollouts.mask_BT.shape[1]
        described = self.steps if steps == self.number_of_steps else self._steps(steps)
        return self.exact.score(described, rollouts, cells_N2, wanted)

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """Summed loss in nats of the answers and the ends behind them (or of the texts at the holes), and their positions.

        Raises RelgradError for an answer that is longer than what is written, or than the network has room for.
        """
        draws = Draws.of(randomness, len(examples))
        rows = self._clean(examples)

        self.network.dropout(True)
        try:
            with seeded(draws):
                return masked_loss(self._learning(rows), rows, self.symbols.mask_id, draws)
        finally:
            self.network.dropout(False)

    def _learning(self, rows: answer.Rows) -> LogitsAt:
        """`_logits_at`, which first looks at the first batch of all (parts.Check)."""

        def logits_at(ids_BL: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
            if self._check is not None:
                self._check(*(t.to(self.device) for t in (ids_BL, rows.valid_BL, rows.ids_BL)))
                self._check = None
            return self._logits_at(rows, ids_BL, at)

        return logits_at

    def _logits_at(self, rows: answer.Rows, ids_BL: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        """See masked_loss.LogitsAt."""
        number_BL = (rows.editable_BL.long().cumsum(-1) - 1).clamp(min=0) // self.settings.block
        block_BL = torch.where(rows.editable_BL.long().cumsum(-1) > 0, number_BL, PROMPT)
        hidden_BLH = self.network.hidden(*(t.to(self.device) for t in (ids_BL, rows.valid_BL, block_BL)))
        return self.engine.logits(hidden_BLH[at[0].to(self.device), at[1].to(self.device)])

    @torch.no_grad()
    def target_nll(self, examples: Sequence[Example]) -> tuple[float, int]:
        """See protocols.KnowsTargets: the bound that `supervised_loss` is, of masks that are the same in every call."""
        rows = self._clean(examples)
        loss = masked_loss(
            partial(self._logits_at, rows), rows, self.symbols.mask_id, Draws(0, 0, len(examples), len(examples))
        )
        return float(loss.total), loss.targets

    def _clean(self, examples: Sequence[Example]) -> answer.Rows:
        """The examples' rows as they should be written."""
        if self.settings.writes == "holes":
            return self._filled(examples)
        size, length = self.settings.max_completion_length, self.network.length
        prompts, answers = zip(*(self.symbols.example(e) for e in examples), strict=True)
        for example, ids, written in zip(examples, prompts, answers, strict=True):
            if len(written) > size or len(ids) + size > length:
                raise RelgradError(
                    f"prompt {example.prompt.id} has {len(ids)} tokens and its answer {len(written)}, but "
                    f"policy.max_completion_length is {size} and the network has {length} positions. Leave the example out, or "
                    "raise policy.max_completion_length or policy.network.block_size"
                )
        return answer.rows(prompts, answers, size, self.symbols.end_id)

    def _filled(self, examples: Sequence[Example]) -> answer.Rows:
        """Masked texts with the truth at their holes."""
        trace = self.read([e.prompt for e in examples])
        places_BE, length_B = trace["place_GE"].long(), trace["length_G"]
        truth = [self.symbols.ids(e.target, f"the text of prompt {e.prompt.id}") for e in examples]
        for example, ids, length in zip(examples, truth, length_B.tolist(), strict=True):
            if len(ids) != length:
                raise RelgradError(
                    f"prompt {example.prompt.id} has {length} ids and its text {len(ids)}: with policy.writes=holes the target is "
                    "the whole text, holes filled in"
                )
        state_BE = torch.zeros_like(places_BE)
        for row, ids in enumerate(truth):
            state_BE[row] = torch.tensor(ids)[places_BE[row].clamp(min=0)]
        ids_BL = written_into(trace, torch.arange(len(examples)), state_BE)
        position_L = torch.arange(ids_BL.shape[1])
        editable_BL = (trace["row_GL"] == self.symbols.mask_id) & (position_L < length_B[:, None])
        return answer.Rows(ids_BL, editable_BL, position_L < length_B[:, None])

    # ------------------------------------------------------------------ weights

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return self.weights.parameters()

    def after_update(self) -> None:
        """Take the weights of this moment into their moving average, where one is kept."""
        self.weights.after_update()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the policy writes as it is judged and used: in `evaluation_steps`, with averaged weights where it keeps them."""
        before = self._judged, self.number_of_steps, self.steps, self.max_decisions
        self._judged, self.number_of_steps = True, self.settings.evaluation_steps or self.settings.sampling_steps
        self.steps, self.max_decisions = self._steps(self.number_of_steps), self.number_of_steps
        try:
            with self.weights.averaged():
                yield
        finally:
            self._judged, self.number_of_steps, self.steps, self.max_decisions = before

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference."""
        self.weights.freeze_reference()

    @property
    def temperature(self) -> float:
        """See protocols.Tempered."""
        return self.settings.temperature

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Score with the frozen start; the trainable weights come back whatever happens inside."""
        with self.weights.reference(), self.engine.at_temperature(self.temperature):
            yield

    @contextmanager
    def start_at(self, temperature: float) -> Iterator[None]:
        """See protocols.Tempered."""
        with self.weights.reference(), self.engine.at_temperature(temperature):
            yield

    def save(self, folder: Path) -> None:
        """What the family stores (open.py) and, where they are kept, the averaged weights."""
        self.parts.store.save(Path(folder))
        self.weights.save_average(Path(folder))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another network or vocabulary."""
        folder = Path(folder)
        self.weights.require_average(folder)
        self.parts.store.load(folder)
        self.weights.load_average(folder)
