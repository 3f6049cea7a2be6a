r"""Discrete flow matching: prompt and noise in, text out, in S Euler steps; one decision is one step of all written positions.

    log pi(x_{k+1} | x_k) = sum_i log P_i(x_{k+1}^i | x_k),   i editable,   t_k = k / S       (laws/ctmc.py)

Given x_k the positions are independent, so this is exact (likelihoods, section 3). The prompt is clean and never changes; after
it come `max_completion_length` editable positions, whose text ends at the first end of sequence. The start x_0 is noise that
does not depend on the weights. Steps of many trajectories, at different times, go through the network together; logits over the
vocabulary are computed at editable positions only, and from a mask source only where the law asks for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop, SupervisedLoss
from relgrad.estimators.exact import Exact
from relgrad.estimators.interface import Estimator, Wanted
from relgrad.laws.ctmc import Law
from relgrad.laws.precision import ROUNDING
from relgrad.networks.causal.load import DTYPES
from relgrad.networks.weights.facts import count_parameters, truncation_facts
from relgrad.networks.weights.keeper import Keeper
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.flow import film
from relgrad.policies.flow.engine import Engine
from relgrad.policies.flow.open import Opened, load_weights, open_parts, require_same, save_parts
from relgrad.policies.flow.settings import Settings
from relgrad.policies.flow.steps import Steps
from relgrad.policies.flow.supervised.few_step import few_step_loss
from relgrad.policies.flow.supervised.flow_matching import flow_matching_loss
from relgrad.policies.flow.supervised.noise_path import At
from relgrad.policies.flow.supervised.noise_path import Path as NoisePath
from relgrad.text import answer
from relgrad.trajectories.plan import in_chunks
from relgrad.trajectories.states import pack_states
from relgrad.trajectories.trained_steps import (
    TrainedSteps,
    all_steps,
    random_steps,
    steps_after_branch,
    tokens_per_step,
)


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> FlowPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = FlowPolicy(open_parts(settings, seed, start), settings)
    if reference:
        policy.freeze_reference()
    return policy


class FlowPolicy:
    """See the module. Trace: prompt_GP, prompt_length_G, and the states as trajectories/states.py keeps them.

    It is composed of a network and its vocabulary (`parts`), the steps that follow from them (`steps`), an estimator of
    log-probabilities (`estimator`) and a keeper of weights (`weights`).

    `initial` draws x_0: (groups of the rows [B], prompts, draws) -> ids [B, E]. Its law must not depend on the weights.
    """

    costly_entropy: ClassVar[Literal[True]] = (
        True  # of every live position over all tokens, where scoring needs the jumps alone
    )

    def __init__(self, parts: Opened, settings: Settings) -> None:
        self.parts, self.settings = parts, settings
        self.model, self.symbols, self.scheduler = parts.model.eval(), parts.symbols, parts.scheduler
        if self.model.config.vocab_size != self.symbols.size:
            raise RelgradError(
                f"the network has {self.model.config.vocab_size} embeddings, but its {self.symbols.vocabulary} needs "
                f"{self.symbols.size}"
            )
        self.version = 0
        self.max_decisions = settings.sampling_steps  # S; inside `evaluation`, as many as the policy is judged by
        self.device = self.model.device
        self.path = NoisePath(self.scheduler, self.symbols.source_K)
        law = Law(settings.kernel, "mask" if self.symbols.masked else "uniform", self.symbols.mask_id)
        self.engine = Engine(self.model, self.symbols, law, settings.temperature)
        self.steps = Steps(self.engine, settings.kernel, self.scheduler)
        self.estimator: Estimator = Exact()
        self.weights = Keeper(self.model, settings.ema_decay)
        self.initial: Callable[[Tensor, Sequence[Prompt], Draws], Tensor] = self.noise
        self._judged = False

    @property
    def law(self) -> Literal["exact", "surrogate"]:
        """What the estimator computes."""
        return self.estimator.law

    # ------------------------------------------------------------------ prompts

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt. Raises RelgradError for foreign characters, or where too few positions are left to write in."""
        ids = self.symbols.encode(prompt)
        length, editable = self.model.config.length, self.settings.max_completion_length
        if len(ids) + editable > length:
            raise RelgradError(
                f"prompt {prompt.id} has {len(ids)} tokens and leaves {max(length - len(ids), 0)} editable positions of the "
                f"network's {length}, but policy.max_completion_length is {editable}. Shorten the prompt or lower it. It begins "
                f"{prompt.text[:60]!r}"
            )
        return ids

    def _prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        encoded = [torch.tensor(self.encode(p), dtype=torch.int32) for p in prompts]
        padded_GP = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
        return {"prompt_GP": padded_GP, "prompt_length_G": torch.tensor([len(p) for p in encoded])}

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy. Two uniform numbers per (row, step, position); rows that still share a trajectory are run once."""
        self.model.eval()
        draws = Draws.of(randomness, len(prompts))
        trace, steps = self._prompts(prompts), self.max_decisions
        group_B = torch.arange(len(prompts)).repeat_interleave(group_size)
        mask_BT, branch_B, stands_for = self._trained(draws, group_size)
        own_B, first_B = torch.arange(len(group_B)), group_B * group_size
        start_BE = self.initial(group_B, prompts, draws)
        states = [start_BE if branch_B is None else start_BE[first_B]]
        logp_BT = torch.zeros(mask_BT.shape)
        for step in range(steps):
            leader_B = own_B if branch_B is None else torch.where(step < branch_B, first_B, own_B)
            row_R, follows_B = torch.unique(leader_B, return_inverse=True)
            uniform_BE2 = draws.rand(group_size, start_BE.shape[1], 2).flatten(0, 1)
            after_RE, logp_R = self.steps.advance(
                trace, group_B[row_R], states[-1][row_R], step, steps, uniform_BE2[row_R]
            )
            states.append(after_RE[follows_B])
            logp_BT[:, step] = logp_R[follows_B]
        trace |= pack_states(states, self.symbols.size)
        written = [self.symbols.text(ids) for ids in states[-1].tolist()]
        stops: tuple[Stop, ...] = tuple("eos" if ended else "length" for _, _, ended in written)
        length_B = torch.tensor([len(ids) + ended for _, ids, ended in written])
        return Rollouts(
            prompts=tuple(prompts),
            group_B=group_B,
            behaviour_logp_BT=logp_BT * mask_BT,
            mask_BT=mask_BT,
            size_BT=tokens_per_step(mask_BT, length_B),
            outputs=tuple(Output(text, ids) for text, ids, _ in written),
            stop=stops,
            policy_version=self.version,
            trace=trace,
            # rows of other lengths beside it round a row differently; in 16 bits that is more than rounding noise
            foreign=self.settings.dtype == "bfloat16",
            stands_for=stands_for,
        )

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """`group_size` trajectories per prompt as plain data, written as the policy is judged; see film.py."""
        begun = time.perf_counter()
        with self.evaluation():
            rollouts = self.sample(prompts, group_size, randomness)
            films = film.describe(rollouts, self.steps)
        seconds = time.perf_counter() - begun
        return [{**one, "seconds": seconds} for one in films]

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        settings = self.settings
        trained = settings.train_steps or settings.branch_steps
        steps = f"{settings.sampling_steps} from {'masks' if self.symbols.masked else 'noise'} to text"
        steps += f", {trained} of them trained" if trained else ""
        if settings.evaluation_steps not in (None, settings.sampling_steps):
            steps += f"; judged in {settings.evaluation_steps}"
        facts = {"Parameters": f"{count_parameters(self.model):,}", "Steps": steps}
        return facts | truncation_facts(settings.temperature)

    def noise(self, group_B: Tensor, prompts: Sequence[Prompt], draws: Draws) -> Tensor:
        """x_0 [B, E]: every position uniform over the source's ids."""
        source_K = self.symbols.source_K
        each = len(group_B) // max(len(prompts), 1)
        return source_K[draws.randint(0, len(source_K), each, self.settings.max_completion_length).flatten(0, 1)]

    def _trained(self, draws: Draws, each: int) -> TrainedSteps:
        """Which steps of every row are trained; all of them where the policy is judged."""
        settings, steps = self.settings, self.max_decisions
        if not self._judged and settings.train_steps is not None:
            return random_steps(draws, each, steps, settings.train_steps)
        if not self._judged and settings.branch_steps is not None:
            return steps_after_branch(draws, each, steps, settings.branch_steps)
        return all_steps(len(draws) * each, steps)

    # ------------------------------------------------------------------ scoring

    @property
    def rounding(self) -> float:
        """See protocols.Rounds: of a step of all positions, whose errors add up like a random walk."""
        return ROUNDING[DTYPES[self.settings.dtype]] * math.sqrt(self.settings.max_completion_length)

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Cells in order, as many together as keep their rows' tokens near `budget`: every cell is a row of the forward pass."""
        cells_N2 = rollouts.cells(rows)
        length_G = rollouts.trace["prompt_length_G"] + rollouts.trace["start_BE"].shape[1]
        return in_chunks(cells_N2, length_G[rollouts.group_B[cells_N2[:, 0]]], budget)

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Any cells, trained or not: steps of different rows at different times go together."""
        self.model.eval()
        wanted = Wanted(entropy, self.reference if reference_kl else None)
        return self.estimator.score(self.steps, rollouts, cells_N2, wanted)

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """Summed loss in nats of the answers and the ends behind them, and the number of their positions.

        Noise is added where the policy writes and nowhere else. An answer longer than what is sampled has a position for each of
        its tokens. Raises RelgradError for one that the network has no room for, and for a student without `few_step`.
        """
        if self.model.config.step_conditioned and self.settings.few_step is None:
            raise RelgradError(
                "this network is a few-step student, and is told the size of its steps: supervise it by distillation (add "
                "policy.few_step, and ema_decay), or go on from a network that is not step-conditioned"
            )
        draws = Draws.of(randomness, len(examples))
        prompts = [self.encode(e.prompt) for e in examples]
        answers = [self.symbols.ids(e.target, f"the answer to prompt {e.prompt.id}") for e in examples]
        for example, ids, written in zip(examples, prompts, answers, strict=True):
            if len(ids) + len(written) > self.model.config.length:
                raise RelgradError(
                    f"prompt {example.prompt.id} has {len(ids)} tokens and its answer {len(written)}, more than the network's "
                    f"{self.model.config.length}. Leave the example out, or take a network of a greater policy.network.length"
                )
        rows = answer.rows(prompts, answers, self.settings.max_completion_length, self.symbols.end_id)
        clean = rows.ids_BL.to(self.device), rows.editable_BL.to(self.device), self.path
        network, settings = self.engine.network, self.settings
        self.model.train()  # until the next call: blocks that are computed again in the backward pass need it
        with seeded(draws):
            if settings.few_step is not None:
                return few_step_loss(network, self._average, *clean, settings.few_step, draws)
            return flow_matching_loss(network, *clean, settings.data_loss, draws)

    def _average(self, ids_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        """`engine.network` by the averaged weights, without dropout: the teacher of few-step distillation."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.weights.averaged():
            logits_NV = self.engine.network(ids_BL, time_B, step_B, at)
        self.model.train(training)
        return logits_NV

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
        before = self._judged, self.max_decisions
        self._judged, self.max_decisions = True, self.settings.evaluation_steps or self.settings.sampling_steps
        try:
            with self.weights.averaged():
                yield
        finally:
            self._judged, self.max_decisions = before

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
        """The network or a PEFT adapter, `vocabulary.json`, `flow.json` and, where they are kept, the averaged weights."""
        save_parts(self.parts, Path(folder))
        self.weights.save_average(Path(folder))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another network, vocabulary or process."""
        folder = Path(folder)
        require_same(self.parts, folder)
        self.weights.require_average(folder)
        load_weights(self.parts, folder)
        self.weights.load_average(folder)
