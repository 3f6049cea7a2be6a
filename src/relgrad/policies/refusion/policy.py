r"""ReFusion, sampled: prompt in, slots in any order out; one decision is one planning step.

    log pi(step) = sum_k log PL(slot a_k | scores) + sum_k log p(first token of a_k) + sum_k sum_s log p(token s of a_k | before)

over the slots a_1, a_2, ... that it writes (engine.py). The scores do not look at the tokens drawn, so this is exact
(likelihoods, section 4), and it is computed in the layout that was generated. `evaluation()` may decode as the original does
(native.py); what is written so has no log-probabilities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws, Randomness, generator
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop, SupervisedLoss
from relgrad.estimators.exact import Exact
from relgrad.estimators.interface import Estimator, Wanted
from relgrad.laws.categorical import Truncation
from relgrad.laws.precision import ROUNDING
from relgrad.networks.causal import adapted
from relgrad.networks.causal import load as causal
from relgrad.networks.causal.encode import Encoder
from relgrad.networks.causal.modes import Modes
from relgrad.networks.refusion.network import SlotNetwork
from relgrad.networks.weights.facts import count_parameters, truncation_facts
from relgrad.networks.weights.keeper import Keeper
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.refusion import film, native
from relgrad.policies.refusion.engine import Laws, Uniforms, Written, write
from relgrad.policies.refusion.open import Opened, never_written, open_parts, save_parts
from relgrad.policies.refusion.schedule import Schedule
from relgrad.policies.refusion.settings import Settings
from relgrad.policies.refusion.steps import State, Steps
from relgrad.policies.refusion.supervised import refusion_loss
from relgrad.trajectories.trained_steps import TrainedSteps, all_steps, random_steps


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> RefusionPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = RefusionPolicy(open_parts(settings, seed, start), settings)
    if reference:
        policy.freeze_reference()
    return policy


class RefusionPolicy:
    """See the module. Trace: prompt_ids (flat), prompt_length_G, slot_BTK, token_BTKS (-1: nothing) and, truncated, the support.

    It is composed of a network (`network`), the steps that follow from it (`steps`), an estimator of log-probabilities
    (`estimator`), a keeper of weights (`weights`), an encoder of texts and the modes of the network's layers.
    """

    def __init__(self, parts: Opened, settings: Settings) -> None:
        self.parts, self.settings, self.version = parts, settings, 0
        self.model = parts.model.eval()
        model = adapted.bare(self.model)
        self.network = SlotNetwork(model, parts.mask_id, never_written(model, parts.tokenizer))
        self.device = self.network.device
        ends = causal.eos_ids(model, parts.tokenizer, settings.eos_token_ids)
        if not ends:
            raise RelgradError(f"model {settings.model!r} names no end-of-sequence id: set policy.eos_token_ids")
        entries = model.get_input_embeddings().weight.shape[0]
        own = parts.tokenizer.eos_token_id
        end_id = ends[0] if own is None else int(own)
        self.encoder = Encoder(
            parts.tokenizer, settings, causal.context(model.config), entries, end_ids=tuple(ends), end_id=end_id
        )
        self.end_ids = torch.tensor(ends)
        self.laws = Laws(Truncation(settings.temperature, 0, settings.top_p), settings.slot_temperature)
        self.steps = Steps(self.network, settings.schedule, lambda: self.laws, self.end_ids)
        self.estimator: Estimator = Exact()
        self.weights = Keeper(self.model, settings.ema_decay)
        self.modes = Modes(model, recompute=settings.gradient_checkpointing)
        self.schedule: Schedule = settings.schedule(settings.sampling_steps)
        self.max_decisions = self.schedule.steps  # inside `evaluation`, as many as the policy is judged by
        self._judged = False

    @property
    def law(self) -> Literal["exact", "surrogate"]:
        """What the estimator computes."""
        return self.estimator.law

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        settings = self.settings
        steps = f"{settings.schedule(settings.sampling_steps).steps} planning steps"
        steps += f", {settings.train_steps} of them trained" if settings.train_steps else ""
        if settings.native is not None:
            steps += "; judged by plan, verify and infill"
        elif settings.evaluation_steps not in (None, settings.sampling_steps):
            steps += f"; judged in {settings.evaluation_steps}"
        slots = f"{self.schedule.slots} of {settings.slot_size} tokens"
        facts = {"Parameters": f"{count_parameters(self.model):,}", "Slots": slots, "Steps": steps}
        return facts | truncation_facts(settings.temperature, settings.top_p)

    def encode(self, prompt: Prompt) -> Tensor:
        """Token ids [P] of a prompt. Raises RelgradError when it leaves no room for an answer in the context."""
        return self.encoder.prompt(prompt)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy. One uniform number for every slot in every step, and for every token of every slot."""
        draws = Draws.of(randomness, len(prompts))
        encoded = [self.encode(prompt) for prompt in prompts]
        self.modes.draw()
        if self._judged and self.settings.native is not None:
            return self._natively(tuple(prompts), encoded, group_size, draws)
        schedule = self.schedule
        shape = (group_size, schedule.steps)
        slot_BTN = draws.rand(*shape, schedule.slots, dtype=torch.float64).flatten(0, 1)
        token_BTKS = draws.rand(*shape, schedule.widest, schedule.size).flatten(0, 1)
        trained = self._trained(draws, group_size)
        written = write(
            self.network, encoded, group_size, schedule, self.laws, self.end_ids, Uniforms(slot_BTN, token_BTKS)
        )
        return self._rollouts(tuple(prompts), encoded, written, trained)

    def _rollouts(
        self, prompts: tuple[Prompt, ...], encoded: Sequence[Tensor], written: Written, trained: TrainedSteps
    ) -> Rollouts:
        schedule = self.schedule
        state = State.of(written.slot_BTK, written.token_BTKS, schedule, self.end_ids)
        end_B, size = state.end_RT1[:, -1], schedule.size
        position_BTKS = written.slot_BTK[..., None] * size + torch.arange(size)
        in_text_BTKS = (written.token_BTKS >= 0) & (position_BTKS <= end_B[:, None, None, None])
        mask_BT = state.open_RTN.any(-1) & trained.mask_BT
        order_BM = torch.where(in_text_BTKS, position_BTKS, schedule.positions).flatten(1).argsort(dim=-1)
        length_B = in_text_BTKS.flatten(1).sum(-1)
        sorted_BM = written.token_BTKS.flatten(1).gather(1, order_BM)
        counts = torch.minimum(length_B, end_B).tolist()
        texts = [row[:count] for row, count in zip(sorted_BM.tolist(), counts, strict=True)]
        trace = {
            "prompt_ids": torch.cat(list(encoded)).to(torch.int32),
            "prompt_length_G": torch.tensor([len(ids) for ids in encoded]),
            "slot_BTK": written.slot_BTK.to(torch.int32),
            "token_BTKS": written.token_BTKS.to(torch.int32),
        }
        if written.support is not None:
            trace["support_offset"], trace["support_index"] = written.support
        stops: tuple[Stop, ...] = tuple("eos" if end < schedule.positions else "length" for end in end_B.tolist())
        return Rollouts(
            prompts=prompts,
            group_B=torch.arange(len(prompts)).repeat_interleave(len(texts) // max(len(prompts), 1)),
            behaviour_logp_BT=written.logp_BT.float() * mask_BT,
            mask_BT=mask_BT,
            size_BT=in_text_BTKS.flatten(2).sum(-1) * mask_BT,
            outputs=self._outputs(texts),
            stop=stops,
            policy_version=self.version,
            trace=trace,
            # a row of all steps rounds differently from steps one after the other; in 16 bits that is more than rounding noise
            foreign=self.settings.dtype in ("bfloat16", "float16"),
            stands_for=trained.stands_for,
        )

    def _outputs(self, texts: Sequence[Sequence[int]]) -> tuple[Output, ...]:
        decoded = self.encoder.decode(texts)
        return tuple(Output(text, tuple(ids)) for text, ids in zip(decoded, texts, strict=True))

    def _natively(
        self, prompts: tuple[Prompt, ...], encoded: Sequence[Tensor], group_size: int, draws: Draws
    ) -> Rollouts:
        """What native decoding writes: no row has a decision, since no log-probability is known."""
        settings = self.settings.native
        assert settings is not None
        decoded: list[native.Decoded] = []
        for number, ids in zip(draws.number_N.tolist(), encoded, strict=True):
            for row in range(group_size):
                if row and settings.temperature == 0:
                    decoded.append(decoded[-1])
                    continue
                own = generator(draws.seed, "native", number, row)
                decoded.append(native.decode(self.network, ids, self.schedule, settings, self.end_ids, own))
        texts, ends = [one.ids for one in decoded], self.end_ids.tolist()
        stop: list[Stop] = ["eos" if any(i in ends for i in text) else "length" for text in texts]
        length_B1 = torch.tensor([[len(text)] for text in texts])
        cut = [text[: next((n for n, i in enumerate(text) if i in ends), len(text))] for text in texts]
        nothing_B1 = torch.zeros(len(texts), 1)
        return Rollouts(
            prompts, torch.arange(len(prompts)).repeat_interleave(group_size), nothing_B1, nothing_B1.bool(), length_B1,
            self._outputs(cut), tuple(stop), self.version, {"forwards_B": torch.tensor([one.forwards for one in decoded])},
        )  # fmt: skip

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """`group_size` texts per prompt as plain data, written as the policy is judged; see film.py.

        What native decoding writes is there at once: its rounds write and take back.
        """
        begun = time.perf_counter()
        with self.evaluation():
            rollouts = self.sample(prompts, group_size, randomness)
            if self.settings.native is None:
                states = film.states(rollouts, self.steps, self.schedule)
            else:
                states_BTE = torch.full((rollouts.rows, 2, self.schedule.positions), -1)
                for row, output in enumerate(rollouts.outputs):
                    states_BTE[row, 1, : len(output.ids)] = torch.tensor(output.ids, dtype=torch.int64)
                states = (states_BTE, torch.full(states_BTE.shape, torch.nan), rollouts.trace["forwards_B"])
        films = film.describe(rollouts, *states, self.end_ids.tolist(), lambda ids: self.encoder.decode([list(ids)])[0])
        seconds = time.perf_counter() - begun
        return [{**one, "seconds": seconds} for one in films]

    def _trained(self, draws: Draws, each: int) -> TrainedSteps:
        """Which steps of every row are trained; all of them where the policy is judged."""
        if not self._judged and self.settings.train_steps is not None:
            return random_steps(draws, each, self.schedule.steps, min(self.settings.train_steps, self.schedule.steps))
        return all_steps(len(draws) * each, self.schedule.steps)

    # ------------------------------------------------------------------ scoring

    @property
    def rounding(self) -> float:
        """See protocols.Rounds: of a step of several slots, whose tokens' errors add up like a random walk."""
        tokens = self.schedule.widest * (self.schedule.size + 1)
        return max(ROUNDING[causal.DTYPES[self.settings.dtype]], ROUNDING[torch.float32]) * math.sqrt(tokens)

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Cells in order, as many together as keep the input near `budget` places: rows times the longest of them.

        A row is prompt and answer, and the masks of each of its steps in the chunk.
        """
        cells_N2 = rollouts.cells(rows)
        if not len(cells_N2):
            return []  # what was decoded natively has no decisions
        trace, schedule = rollouts.trace, self.settings.schedule(rollouts.mask_BT.shape[1])
        state = State.of(trace["slot_BTK"].long(), trace["token_BTKS"].long(), schedule, self.end_ids)
        masks_N = state.open_RTN.sum(-1)[cells_N2[:, 0], cells_N2[:, 1]] * schedule.size
        length_B = trace["prompt_length_G"][rollouts.group_B] + (trace["token_BTKS"] >= 0).flatten(1).sum(-1)
        chunks: list[list[int]] = []
        widths: dict[int, int] = {}
        for number, (row, masks) in enumerate(zip(cells_N2[:, 0].tolist(), masks_N.tolist(), strict=True)):
            widths[row] = widths.get(row, int(length_B[row])) + masks
            if not chunks or len(widths) * max(widths.values()) > budget:
                chunks.append([])
                widths = {row: int(length_B[row]) + masks}
            chunks[-1].append(number)
        return [cells_N2[chunk] for chunk in chunks]

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Dropout is off. Any cells, trained or not: steps of many rows go together."""
        self.modes.score(dropout=False)
        return self.estimator.score(
            self.steps, rollouts, cells_N2, Wanted(entropy, self.reference if reference_kl else None)
        )

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """ReFusion's loss (supervised.py), summed over the tokens of the answers and what ends them.

        Take the gradient before the next call: where there is dropout, the layers stay in training mode until then.
        """
        draws = Draws.of(randomness, len(examples))
        encoded = [self.encoder.example(example) for example in examples]
        if self.settings.fill_with_end:
            length = self.settings.max_completion_length
            encoded = [
                (prompt, torch.cat([answer, answer[-1:].expand(max(length - len(answer), 0))]))
                for prompt, answer in encoded
            ]
        self.modes.score(dropout=True)
        with seeded(draws):
            return refusion_loss(self.network, encoded, self.settings.slot_sizes, draws)

    # ------------------------------------------------------------------ weights

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return self.weights.parameters()

    def after_update(self) -> None:
        """Take the weights of this moment into their moving average, where one is kept."""
        self.weights.after_update()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the policy writes as it is judged and used: in `evaluation_steps` or natively, with averaged weights."""
        before, settings = (self._judged, self.schedule), self.settings
        self._judged = True
        self.schedule = settings.schedule(settings.evaluation_steps or settings.sampling_steps)
        self.max_decisions = self.schedule.steps
        try:
            with self.weights.averaged():
                yield
        finally:
            self._judged, self.schedule = before
            self.max_decisions = self.schedule.steps

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference."""
        self.weights.freeze_reference()

    @property
    def temperature(self) -> float:
        """See protocols.Tempered: that of tokens."""
        return self.settings.temperature

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Score with the frozen start; the trainable weights come back whatever happens inside."""
        with self.weights.reference(), self._at(self.temperature):
            yield

    @contextmanager
    def start_at(self, temperature: float) -> Iterator[None]:
        """See protocols.Tempered."""
        if self.settings.native is not None:
            raise RelgradError(
                "native decoding has no log-probabilities, so the start cannot be cooled to a divergence: leave evaluation.cooled "
                "or policy.native out"
            )
        with self.weights.reference(), self._at(temperature):
            yield

    @contextmanager
    def _at(self, temperature: float) -> Iterator[None]:
        before = self.laws
        self.laws = before._replace(tokens=Truncation(temperature, 0, self.settings.top_p))
        try:
            yield
        finally:
            self.laws = before

    def save(self, folder: Path) -> None:
        """A model folder or a PEFT adapter, with the tokenizer and, where they are kept, the averaged weights."""
        save_parts(self.parts, Path(folder))
        self.weights.save_average(Path(folder))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another model's folder."""
        folder = Path(folder)
        self.weights.require_average(folder)
        adapted.load(self.model, folder)
        self.weights.load_average(folder)
