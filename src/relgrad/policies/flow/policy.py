r"""Discrete flow matching: prompt and noise in, text out, in S Euler steps; one decision is one step of all written positions.

    log pi(x_{k+1} | x_k) = sum_i log P_i(x_{k+1}^i | x_k),   i editable,   t_k = k / S       (laws/ctmc.py)

Given x_k the positions are independent, so this is exact (likelihoods, section 3). The prompt is clean and never changes; after
it come `max_completion_length` editable positions, whose text ends at the first end of sequence. The start x_0 is noise that
does not depend on the weights. Steps of many trajectories, at different times, go through the network together; logits over the
vocabulary are computed at editable positions only, and from a mask source only where the law asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop
from relgrad.laws import ctmc
from relgrad.laws.ctmc import Kernel, Law, Source
from relgrad.laws.schedule import SchedulerKind
from relgrad.networks.fsdfm.lora import ATTENTION
from relgrad.networks.fsdfm.published_files import Part
from relgrad.networks.weights.average import Ema
from relgrad.networks.weights.reference import FrozenStart
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.flow import film as _flow_film
from relgrad.policies.flow import open as _flow_open
from relgrad.policies.flow.engine import Asked, Engine
from relgrad.policies.flow.open import Opened
from relgrad.policies.flow.supervised import answer
from relgrad.policies.flow.supervised.few_step import FewStep, few_step_loss
from relgrad.policies.flow.supervised.flow_matching import DataLoss, flow_matching_loss
from relgrad.policies.flow.supervised.noise_path import At
from relgrad.policies.flow.supervised.noise_path import Path as NoisePath
from relgrad.text.corpus import BUILTIN
from relgrad.trajectories import states as _flow_states
from relgrad.trajectories import trained_steps as _flow_training
from relgrad.trajectories.trained_steps import Trained

ROWS = 16_384
"""Tokens of one forward pass while sampling."""


class Network(Strict):
    """Sizes that differ from those of the named one. Of a checkpoint: what it has, and what a file does not say."""

    hidden: int | None = Field(None, ge=2)
    blocks: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    cond_dim: int | None = Field(None, ge=1)
    mlp_ratio: int | None = Field(None, ge=1)
    length: int | None = Field(None, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)


class Lora(Strict):
    """LoRA through peft; `target_modules` are names of linear layers, or "all-linear"."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = ATTENTION


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: flow`; null stands for what the checkpoint says.

    model             a size for a new network, a folder a run saved, or a checkpoint file of FS-DFM
    symbols           "ascii", "char" (the characters of `text`), "byte", a tokenizer.json or its folder, or a hub name
    sampling_steps    S while training; `evaluation_steps` where the policy is judged or used
    train_steps       train so many steps of each trajectory, drawn at random
    branch_steps      Flow-GRPO-Fast: a group shares its trajectory up to a random step, and the next so many are trained
    few_step          supervised stages distil into a step-conditioned student
    """

    model: str = "small"
    part: Part = "auto"
    network: Network = Network()
    symbols: str | None = None
    text: str = BUILTIN
    end_token: str | None = None
    max_completion_length: int = Field(128, ge=1)
    source: Source | None = None
    kernel: Kernel = "mixture"
    scheduler: SchedulerKind | None = None
    exponent: float | None = Field(None, ge=1)
    sampling_steps: int = Field(16, ge=1)
    evaluation_steps: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, gt=0)
    train_steps: int | None = Field(None, ge=1)
    branch_steps: int | None = Field(None, ge=1)
    data_loss: DataLoss = "cross_entropy"
    few_step: FewStep | None = None
    ema_decay: float = Field(0.0, ge=0, lt=1)
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    device: str = "auto"

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.scheduler == "cosine" and self.exponent is not None:
            raise ValueError(f"exponent={self.exponent:g} is the polynomial's; leave it out with scheduler='cosine'")
        for name in ("train_steps", "branch_steps"):
            count = getattr(self, name)
            if count is not None and count > self.sampling_steps:
                raise ValueError(f"{name}={count}: a trajectory has only sampling_steps={self.sampling_steps} steps")
        if self.train_steps is not None and self.branch_steps is not None:
            raise ValueError("train_steps and branch_steps both say which steps are trained: keep one")
        if self.few_step is not None:
            for steps in (self.sampling_steps, self.evaluation_steps or self.sampling_steps):
                self.few_step.require_steps(steps)
            if self.source == "mask" and self.few_step.teacher == "rk4":
                raise ValueError("few_step.teacher='rk4' needs a uniform source; with source='mask' use half_steps")
            if not self.ema_decay:
                raise ValueError("few_step learns from a moving average of itself: set ema_decay, for example 0.9995")
        if self.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                "dtype='bfloat16' with full-parameter training: small updates would be rounded away. Use float32, or train a "
                "float32 adapter on these weights with a lora section"
            )
        return self


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> FlowPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    policy = FlowPolicy(_flow_open.open_parts(settings, seed, start), settings)
    if reference:
        policy.freeze_reference()
    return policy


class FlowPolicy:
    """See the module. Trace: prompt_GP, prompt_length_G, and the states as _flow_states.py keeps them.

    `initial` draws x_0: (groups of the rows [B], prompts, generator) -> ids [B, E]. Its law must not depend on the weights.
    """

    law: Literal["exact", "surrogate"] = "exact"
    costly_entropy = True  # of every live position over the whole vocabulary, where scoring needs the jumps alone
    FILM_STEPS = "evaluation_steps"

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
        self.step_law = Law(settings.kernel, "mask" if self.symbols.masked else "uniform", self.symbols.mask_id)
        self.path = NoisePath(self.scheduler, self.symbols.source_K)
        self.device = self.model.device
        self.initial: Callable[[Tensor, Sequence[Prompt], torch.Generator], Tensor] = self.noise
        self.engine = Engine(self.model, self.symbols, self.step_law, settings.temperature)
        self._start, self._judged = FrozenStart(), False
        self._ema = Ema(self.parameters(), settings.ema_decay) if settings.ema_decay else None
        self._hazards = cache(self._hazards_of)

    def _hazards_of(self, steps: int) -> Tensor:
        """float32 [S]: the hazard of every step (laws/ctmc.py)."""
        time_S = torch.arange(steps, dtype=torch.float64) / steps
        return ctmc.hazard(self.settings.kernel, self.scheduler, time_S, 1 / steps).float()

    # ------------------------------------------------------------------ prompts

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt. Raises RelgradError for foreign characters, or where too few positions are left to write in."""
        ids = self.symbols.encode(prompt)
        length, wanted = self.model.config.length, self.settings.max_completion_length
        if len(ids) + wanted > length:
            raise RelgradError(
                f"prompt {prompt.id} has {len(ids)} tokens and leaves {max(length - len(ids), 0)} editable positions of the "
                f"network's {length}, but policy.max_completion_length is {wanted}. Shorten the prompt or lower it. It begins "
                f"{prompt.text[:60]!r}"
            )
        return ids

    def _prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        encoded = [torch.tensor(self.encode(p), dtype=torch.int32) for p in prompts]
        padded_GP = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
        return {"prompt_GP": padded_GP, "prompt_length_G": torch.tensor([len(p) for p in encoded])}

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator) -> Rollouts:
        """See protocols.Policy. Two uniform numbers per (row, step, position); rows that still share a trajectory are run once."""
        self.model.eval()
        trace, steps = self._prompts(prompts), self.max_decisions
        group_B = torch.arange(len(prompts)).repeat_interleave(group_size)
        mask_BT, branch_B, stands_for = self._trained(len(prompts), group_size, generator)
        own_B, first_B = torch.arange(len(group_B)), group_B * group_size
        start_BE = self.initial(group_B, prompts, generator)
        states = [start_BE if branch_B is None else start_BE[first_B]]
        logp_BT = torch.zeros(mask_BT.shape)
        for step in range(steps):
            leader_B = own_B if branch_B is None else torch.where(step < branch_B, first_B, own_B)
            row_R, follows_B = torch.unique(leader_B, return_inverse=True)
            uniform_RE2 = torch.rand(len(row_R), start_BE.shape[1], 2, generator=generator)
            after_RE, logp_R = self._advance(trace, group_B[row_R], states[-1][row_R], step, uniform_RE2)
            states.append(after_RE[follows_B])
            logp_BT[:, step] = logp_R[follows_B]
        trace |= _flow_states.write(states, self.symbols.size)
        written = [self.symbols.text(ids) for ids in states[-1].tolist()]
        stops: tuple[Stop, ...] = tuple("eos" if ended else "length" for _, _, ended in written)
        length_B = torch.tensor([len(ids) + ended for _, ids, ended in written])
        return Rollouts(
            prompts=tuple(prompts),
            group_B=group_B,
            behaviour_logp_BT=logp_BT * mask_BT,
            mask_BT=mask_BT,
            size_BT=_flow_training.sizes(mask_BT, length_B),
            outputs=tuple(Output(text, ids) for text, ids, _ in written),
            stop=stops,
            policy_version=self.version,
            trace=trace,
            stands_for=stands_for,
        )

    def film(self, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator) -> list[dict[str, Any]]:
        """`group_size` trajectories per prompt as plain data, written as the policy is judged; see _flow_film.py."""
        self.model.eval()
        with self.evaluation():
            return _flow_film.shoot(self, prompts, group_size, generator)

    def noise(self, group_B: Tensor, prompts: Sequence[Prompt], generator: torch.Generator) -> Tensor:
        """x_0 [B, E]: every position uniform over the source's ids."""
        source_K = self.symbols.source_K
        shape = (len(group_B), self.settings.max_completion_length)
        return source_K[torch.randint(len(source_K), shape, generator=generator)]

    def _trained(self, groups: int, each: int, generator: torch.Generator) -> Trained:
        settings = self.settings
        if not self._judged and settings.train_steps is not None:
            return _flow_training.some(groups * each, self.max_decisions, settings.train_steps, generator)
        if not self._judged and settings.branch_steps is not None:
            return _flow_training.after_branch(groups, each, self.max_decisions, settings.branch_steps, generator)
        return _flow_training.everything(groups * each, self.max_decisions)

    def _advance(
        self, trace: dict[str, Tensor], group_R: Tensor, before_RE: Tensor, step: int, uniform_RE2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """([R, E] states after one step, [R] its log-probability)."""
        after_RE, logp_R = before_RE.clone(), torch.zeros(len(before_RE), dtype=torch.float64)
        hazard_RE = self._hazards(self.max_decisions)[step].expand(before_RE.shape)
        drawn_RE = torch.ones_like(before_RE, dtype=torch.bool)
        if self.symbols.masked:
            drawn_RE = ctmc.unmasks(self.step_law, before_RE, hazard_RE, uniform_RE2[..., 0])
        width = int(trace["prompt_length_G"].max()) + before_RE.shape[1]
        for piece in torch.arange(len(before_RE)).split(max(ROWS // width, 1)):
            row_M, number_M = drawn_RE[piece].nonzero(as_tuple=True)
            step_N = torch.full((len(piece),), step)
            hidden_MH = self.engine.hidden(
                trace, group_R[piece], before_RE[piece], step_N, self.max_decisions, (row_M, number_M)
            )
            row_M = piece[row_M]
            columns = (t[row_M, number_M] for t in (before_RE, hazard_RE, uniform_RE2))
            next_M, logp_M = self.engine.by_pieces(self.engine.draw, hidden_MH, *columns)
            after_RE[row_M, number_M] = next_M.cpu()
            logp_R.index_add_(0, row_M, logp_M.double().cpu())
        free_RE = ctmc.free_log_prob(self.step_law, before_RE, after_RE, hazard_RE)
        return after_RE, (logp_R + torch.where(drawn_RE, 0.0, free_RE.double()).sum(-1)).float()

    # ------------------------------------------------------------------ scoring

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Cells in order, as many together as keep their rows' tokens near `budget`: every cell is a row of the forward pass."""
        cells_N2 = rollouts.cells(rows)
        length_G = rollouts.trace["prompt_length_G"] + rollouts.trace["start_BE"].shape[1]
        chunks: list[list[int]] = []
        used = 0
        for number, cost in enumerate(length_G[rollouts.group_B[cells_N2[:, 0]]].tolist()):
            if not chunks or used + cost > budget:
                chunks.append([])
                used = 0
            chunks[-1].append(number)
            used += cost
        return [cells_N2[chunk] for chunk in chunks]

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Any cells, trained or not: steps of different rows at different times go together."""
        self.model.eval()
        trace, steps = rollouts.trace, rollouts.mask_BT.shape[1]
        group_N, step_N = rollouts.group_B[cells_N2[:, 0]], cells_N2[:, 1]
        before_NE, after_NE = _flow_states.around(trace, cells_N2)
        hazard_NE = self._hazards(steps)[step_N][:, None].expand(before_NE.shape)
        asked = Asked(entropy, self.reference if reference_kl else None)
        needed_NE = self.step_law.depends(before_NE, after_NE)
        if entropy or reference_kl:
            needed_NE = self.step_law.live(before_NE)
        row_M, number_M = needed_NE.nonzero(as_tuple=True)
        place = (trace, group_N, before_NE, step_N, steps, (row_M, number_M))
        hidden_MH, start_MH = self.engine.hidden(*place), None
        if reference_kl:
            with torch.no_grad(), self.reference():
                start_MH = self.engine.hidden(*place)
        columns = [t[row_M, number_M] for t in (before_NE, after_NE, hazard_NE)]
        found = self.engine.by_pieces(self.engine.terms, hidden_MH, *columns, start_MH, asked)
        zeros_N = torch.zeros(len(cells_N2), dtype=torch.float64, device=self.device)
        sums = [zeros_N.index_add(0, row_M.to(self.device), found_M.double()) for found_M in found]
        free_NE = ctmc.free_log_prob(self.step_law, before_NE, after_NE, hazard_NE)
        free_N = torch.where(needed_NE, 0.0, free_NE.double()).sum(-1).to(self.device)
        entropy_N = sums[1].float() if entropy else None
        return CellScores((sums[0] + free_N).float(), entropy_N, sums[-1].float() if reference_kl else None)

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], generator: torch.Generator) -> tuple[Tensor, int]:
        """Summed loss in nats of the answers and the ends behind them, and the number of their positions.

        Noise is added where the policy writes and nowhere else. Raises RelgradError for an answer that is too long, and for a
        student without `few_step`.
        """
        if self.model.config.step_conditioned and self.settings.few_step is None:
            raise RelgradError(
                "this network is a few-step student, and is told the size of its steps: supervise it by distillation (add "
                "policy.few_step, and ema_decay), or go on from a network that is not step-conditioned"
            )
        prompts = [self.encode(e.prompt) for e in examples]
        answers = [self.symbols.ids(e.target, f"the answer to prompt {e.prompt.id}") for e in examples]
        rows = answer.rows(prompts, answers, self.settings.max_completion_length, self.symbols.end_id)
        rows_of = rows.ids_BL.to(self.device), rows.editable_BL.to(self.device), self.path
        network, settings = self.engine.network, self.settings
        self.model.train()  # until the next call: blocks that are computed again in the backward pass need it
        with seeded(generator):
            if settings.few_step is not None:
                return few_step_loss(network, self._average, *rows_of, settings.few_step, generator)
            return flow_matching_loss(network, *rows_of, settings.data_loss, generator)

    def _average(self, ids_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        """`engine.network` by the averaged weights, without dropout: the teacher of few-step distillation."""
        assert self._ema is not None
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self._ema.in_place(self.parameters()):
            logits_NV = self.engine.network(ids_BL, time_B, step_B, at)
        self.model.train(training)
        return logits_NV

    # ------------------------------------------------------------------ weights

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def after_update(self) -> None:
        """Take the weights of this moment into their moving average."""
        if self._ema is not None:
            self._ema.update(self.parameters())

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the policy writes as it is judged and used: in `evaluation_steps`, with averaged weights where it keeps them."""
        before = self._judged, self.max_decisions
        self._judged, self.max_decisions = True, self.settings.evaluation_steps or self.settings.sampling_steps
        try:
            with nullcontext() if self._ema is None else self._ema.in_place(self.parameters()):
                yield
        finally:
            self._judged, self.max_decisions = before

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference."""
        self._start.take(self.parameters())

    def reference(self) -> AbstractContextManager[None]:
        """Score with the frozen start; the trainable weights come back whatever happens inside."""
        return self._start.in_place(self.parameters())

    def save(self, folder: Path) -> None:
        """The network or a PEFT adapter, `vocabulary.json`, `flow.json` and, where they are kept, the averaged weights."""
        _flow_open.save(self.parts, self._ema, Path(folder))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another network, vocabulary or process."""
        _flow_open.load(self.parts, self._ema, Path(folder))
