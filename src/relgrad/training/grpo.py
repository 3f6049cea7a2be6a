r"""The GRPO loop: sample, score, compare within the group, update. Names no policy, reward or loss.

    for every generation batch:
        rollouts   ~ policy                                     `num_prompts` prompts x `num_generations`
        r_i        = rewards(rollouts)                          NaN where unscored
        A_i        = (r_i - mean_group) / std_group             advantages.py
        for every optimizer step:                               `num_iterations` x `steps_per_generation`
            L      = loss(log pi, log pi_behaviour, A, ...)     losses.py; + sft_coef x cross-entropy, where it is asked for
            theta  = AdamW(theta, dL/dtheta)

The gradient is taken in two passes, so that cutting a batch into memory-sized chunks is exact for every loss: first the loss
is differentiated with respect to the log-probabilities (a leaf; on the first step after sampling these are the recorded ones and
cost nothing), then chunk by chunk the policy scores its cells again and back-propagates that slice. Rows whose slice is
zero are not computed at all. All randomness is derived from (seed, generation), so a state needs no random-number state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Loss, LossTerms, Policy, Rewards
from relgrad.core.randomness import draw_epochs, generator
from relgrad.core.types import CellScores, Example, Prompt, RewardTable, Rollouts, StepRecord
from relgrad.objectives import advantages
from relgrad.objectives.divergences import k1
from relgrad.objectives.losses import KlEstimator, LossType, mean_per_row, truncated_importance_weights
from relgrad.training.batch import Batch, merge_tables, mismatch_metrics
from relgrad.training.optimizer import Optimizer, OptimizerSettings, require_finite

Chunk = tuple[Rollouts, Tensor, int, CellScores | None]
"""(part, cells in the part's own rows, number of the part's first row in the batch, their scores where known)"""


class GrpoSettings(OptimizerSettings):
    """A recipe's `grpo` section. Names, meanings and defaults are TRL's GRPOConfig's where it has them.

    One generation batch is `num_prompts` prompts x `num_generations` completions; it serves `num_iterations` passes of
    `steps_per_generation` optimizer steps each.
    """

    steps: int = Field(100, ge=1, description="optimizer steps")
    num_prompts: int = Field(8, ge=1, description="prompts per generation batch")
    num_generations: int = Field(8, description="completions per prompt (the group)")
    num_iterations: int = Field(1, ge=1)
    steps_per_generation: int = Field(1, ge=1)
    loss_type: LossType = "dapo"
    loss: str | None = Field(None, description="a loss of your own in place of `loss_type`: .py file or module")
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)
    delta: float | None = None
    importance_sampling_level: Literal["token", "sequence"] = "token"
    beta: float = Field(0.0, ge=0)
    kl_estimator: KlEstimator = "k3"
    use_bias_correction_kl: bool = True
    step_ratio_norm: bool = False
    entropy_coef: float = 0.0
    scale_rewards: Literal["group", "batch", "none"] = "group"
    leave_one_out: bool = False
    credit: Literal["row", "decision"] = "row"
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    mask_truncated_completions: bool = False
    sft_coef: float = Field(0.0, ge=0, description="weight of the cross-entropy of the prompts' own targets")
    sft_column: str = "completion"
    max_resamples: int = Field(0, ge=0, description="rounds in which groups without spread are replaced (DAPO)")
    importance_sampling_cap: float = Field(2.0, gt=0, description="cap of the weights for another engine's log-probs")
    micro_batch_tokens: int = Field(8192, ge=1, description="memory budget of one scoring chunk, in tokens")
    reward_timeout: float = Field(60.0, gt=0, description="seconds one group may take to be rewarded")

    @model_validator(mode="after")
    def _legal(self) -> GrpoSettings:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations={self.num_generations}: a group needs at least 2 completions to compare; 8 is usual"
            )
        if self.num_prompts % self.steps_per_generation:
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation} must divide num_prompts={self.num_prompts}: "
                "an optimizer step takes whole groups"
            )
        upper = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= upper:
            raise ValueError(
                f"delta={self.delta} must exceed 1 + epsilon_high = {upper}: below it the ordinary clip acts first"
            )
        if self.loss is not None and "loss_type" in self.model_fields_set and self.loss_type != "dapo":
            raise ValueError(f"loss={self.loss!r} and loss_type={self.loss_type!r} exclude each other; keep one")
        if self.kl_estimator != "k3" and not self.beta:
            raise ValueError(f"kl_estimator={self.kl_estimator!r} has no effect with beta=0: set beta, or drop it")
        if self.step_ratio_norm and (self.importance_sampling_level == "sequence" or self.loss_type == "reinforce"):
            raise ValueError("step_ratio_norm needs importance_sampling_level='token' and a loss_type that has ratios")
        if self.credit == "decision" and self.kl_estimator == "k1":
            raise ValueError("credit='decision' with kl_estimator='k1', a penalty of whole rows: use exact, k2 or k3")
        if self.credit == "decision" and self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"credit='decision' with multi_objective_aggregation={self.multi_objective_aggregation!r}: scores of decisions "
                "are added before they are compared (sum_then_normalize); use that, or credit='row'"
            )
        return self


class Grpo:
    """The loop's state: `step` optimizer steps done, `cursor` prompts consumed, the batch in use. `update()` does one step."""

    COUNTERS = ("step", "cursor", "generations", "tokens")

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        loss: Loss,
        settings: GrpoSettings,
        *,
        seed: int = 0,
    ) -> None:
        self.policy, self.prompts, self.rewards, self.loss = policy, prompts, rewards, loss
        self.settings, self.seed = settings, seed
        self.supervised_loss: Callable[..., tuple[Tensor, int]] | None = getattr(policy, "supervised_loss", None)
        if settings.sft_coef and self.supervised_loss is None:
            raise RelgradError(
                f"sft_coef={settings.sft_coef:g} needs a policy that can be trained by supervision, but {type(policy).__name__} "
                "has no supervised_loss; set sft_coef to 0"
            )
        self._exact_entropy = "entropy" in loss.needs or not getattr(policy, "costly_entropy", False)
        self.optimizer = Optimizer(dict(policy.parameters()), settings, settings.steps)
        self.step, self.cursor, self.generations, self.tokens = 0, 0, 0, 0
        self.batch: Batch | None = None

    # ------------------------------------------------------------------ one optimizer step

    def update(self) -> StepRecord:
        """Generate if the batch is used up, then one optimizer step. Raises NonFinite before a bad gradient is applied."""
        started = time.perf_counter()
        settings, metrics = self.settings, {}
        per_batch = settings.num_iterations * settings.steps_per_generation
        if self.batch is None or self.batch.used == per_batch:
            self.batch = self.generate()
            metrics.update(self.batch.metrics)
        batch = self.batch
        update_started = time.perf_counter()
        order = generator(self.seed, "order", self.generations, batch.used // settings.steps_per_generation)
        rows = batch.minibatches(settings.steps_per_generation, order)[batch.used % settings.steps_per_generation]
        supervised = self._supervise(batch, rows) if settings.sft_coef else {}
        metrics.update(batch.figures() | self._accumulate(batch, rows) | supervised)
        metrics["loss"] += settings.sft_coef * metrics.get("sft_loss", 0.0)
        metrics.update(self.optimizer.step(self.step))
        self.policy.version += 1
        getattr(self.policy, "after_update", lambda: None)()
        self.step += 1
        batch.used += 1
        now = time.perf_counter()
        metrics["time/update"], metrics["step_time"] = now - update_started, now - started
        metrics["num_tokens"] = self.tokens
        if batch.used == 1:
            metrics["tokens_per_second"] = batch.metrics["completions/total_tokens"] / (now - started)
        return StepRecord(self.step, metrics)

    def _supervise(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """Leave sft_coef x the gradient of the mean cross-entropy of the rows' prompts in .grad, where nothing may be yet."""
        assert self.supervised_loss is not None
        prompts, noise = batch.prompts, generator(self.seed, "sft", self.step)
        examples = [self._example(prompts[group]) for group in batch.group_B[rows].unique().tolist()]
        total, count = 0.0, 0
        for piece in pieces(examples, self.settings.micro_batch_tokens):
            loss, targets = self.supervised_loss(piece, noise)
            require_finite(loss.detach(), "the supervised loss", self.step)
            loss.backward()
            total, count = total + float(loss.detach()), count + targets
        # the pieces left the gradient of a sum; one factor makes it that of the weighted mean, whatever the pieces were
        for parameter in self.optimizer.parameters.values():
            if parameter.grad is not None:
                parameter.grad *= self.settings.sft_coef / max(count, 1)
        return {"sft_loss": total / max(count, 1)}

    def _example(self, prompt: Prompt) -> Example:
        target = prompt.columns.get(self.settings.sft_column)
        if not isinstance(target, str):
            raise RelgradError(
                f"sft_coef: prompt {prompt.id} has no text column {self.settings.sft_column!r}; it has "
                f"{', '.join(sorted(prompt.columns)) or 'none'}. Set grpo.sft_column to the column that holds the text to learn"
            )
        return Example(prompt, target)

    def _accumulate(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """Add dL/dtheta of one minibatch to the parameters' .grad; return its metrics."""
        fresh = all(part.policy_version == self.policy.version for part in batch.parts)
        terms, kept = self._terms(batch, rows, fresh)
        leaves = [t for t in (terms.logp_BT, terms.entropy_BT, terms.kl_BT) if t is not None]
        loss, metrics = self.loss(terms)
        require_finite(loss.detach(), "the loss", self.step)
        metrics = row_figures(terms) | {"loss": float(loss.detach())} | metrics
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        require_finite(torch.stack([s.abs().max() for s in slopes]), "the loss's slope in the log-probs", self.step)
        needed = (torch.stack([s.abs().amax(-1) for s in slopes]).amax(0) > 0).nonzero()[:, 0]
        worst = total = entropy = 0.0
        count, exact_kl = 0, terms.kl_BT is not None
        # the slopes' rows are the minibatch's; the parts' rows are local to each part
        slope_BT = [torch.zeros_like(batch.behaviour_logp_BT).index_copy_(0, rows, s) for s in slopes]
        for part, cells_N2, offset, known in kept if kept and len(needed) else self._chunks(batch, rows[needed]):
            scores = known or self.policy.score(part, cells_N2, entropy=self._exact_entropy, reference_kl=exact_kl)
            outputs = [scores.logp_N]
            outputs += [scores.entropy_N] if terms.entropy_BT is not None and scores.entropy_N is not None else []
            outputs += [scores.kl_N] if scores.kl_N is not None else []
            row_N, step_N = cells_N2[:, 0] + offset, cells_N2[:, 1]
            grads = [s[row_N, step_N].to(o) for s, o in zip(slope_BT, outputs, strict=True)]
            torch.autograd.backward(outputs, grads)
            sampled_N = batch.behaviour_logp_BT[row_N, step_N]
            gap_N = (scores.logp_N.detach().float().cpu() - sampled_N).abs()
            worst, total, count = max(worst, float(gap_N.max())), total + float(gap_N.sum()), count + len(gap_N)
            entropy += float(-sampled_N.sum() if scores.entropy_N is None else scores.entropy_N.detach().sum())
        if count:
            metrics["entropy"] = entropy / count
            if fresh:
                metrics |= {"parity/max_abs": worst, "parity/mean_abs": total / count}
        return metrics

    def _terms(self, batch: Batch, rows: Tensor, fresh: bool) -> tuple[LossTerms, list[Chunk]]:
        """What the loss sees of the minibatch; log-probs, entropy and KL are leaves.

        Where they had to be computed and one chunk holds everything, the chunk with its graph is returned too: then the
        gradient needs no second pass.
        """
        settings = self.settings
        logp_BT = batch.behaviour_logp_BT[rows]
        entropy_BT = kl_BT = None
        needs = self.loss.needs & {"entropy", "kl"}
        kept: list[Chunk] = []
        if needs or not fresh:
            columns = [torch.zeros_like(batch.behaviour_logp_BT) for _ in range(3)]
            chunks = list(self._chunks(batch, rows))
            single = len(chunks) == 1
            with torch.set_grad_enabled(single):
                for part, cells_N2, offset, _ in chunks:
                    asked = {
                        "entropy": self._exact_entropy and (single or "entropy" in needs),
                        "reference_kl": "kl" in needs,
                    }
                    scores = self.policy.score(part, cells_N2, **asked)
                    for column, value in zip(columns, scores, strict=True):
                        if value is not None:
                            column[cells_N2[:, 0] + offset, cells_N2[:, 1]] = value.detach().float().cpu()
                    kept += [(part, cells_N2, offset, scores)] if single else []
            logp_BT = columns[0][rows] if not fresh else logp_BT
            entropy_BT = columns[1][rows].requires_grad_() if "entropy" in needs else None
            kl_BT = columns[2][rows].requires_grad_() if "kl" in needs else None
        decisions = float(batch.mask_BT[batch.keep_B].sum()) / settings.steps_per_generation
        terms = LossTerms(
            logp_BT=logp_BT.clone().requires_grad_(),
            behaviour_logp_BT=batch.behaviour_logp_BT[rows],
            advantage_BT=batch.credit(rows),
            mask_BT=batch.mask_BT[rows],
            batch_decisions=decisions,
            max_decisions=self.policy.max_decisions,
            reference_logp_BT=None if batch.reference_logp_BT is None else batch.reference_logp_BT[rows],
            entropy_BT=entropy_BT,
            kl_BT=kl_BT,
            correction_BT=None if batch.correction_BT is None else batch.correction_BT[rows],
            stands_for=batch.parts[0].stands_for,
        )
        return terms, kept

    def _chunks(self, batch: Batch, rows: Tensor) -> Iterator[Chunk]:
        """The given rows in pieces that the policy planned, not scored yet."""
        for part, own, first in batch.local(rows):
            for cells_N2 in self.policy.plan(part, own, self.settings.micro_batch_tokens):
                yield part, cells_N2, first, None

    # ------------------------------------------------------------------ one generation batch

    def generate(self) -> Batch:
        """Sample, reward, compare. Replaces groups without spread up to `max_resamples` times."""
        settings = self.settings
        parts: list[Rollouts] = []
        tables: list[RewardTable] = []
        keep: list[Tensor] = []
        clock = {"sample": 0.0, "reward": 0.0}
        wanted, resampled = settings.num_prompts, 0
        for attempt in range(settings.max_resamples + 1):
            started = time.perf_counter()
            draw = generator(self.seed, "sample", self.generations, attempt)
            parts.append(self.policy.sample(self._next_prompts(wanted), settings.num_generations, draw))
            clock["sample"] += time.perf_counter() - started
            started = time.perf_counter()
            tables.append(self.rewards(parts[-1]))
            clock["reward"] += time.perf_counter() - started
            live_B = ~self._credit(parts[-1].group_B, tables[-1], parts[-1].mask_BT).flat_G[parts[-1].group_B]
            spare = wanted - len(parts[-1].group_B[live_B].unique())
            if not spare or attempt == settings.max_resamples:
                keep.append(torch.ones(parts[-1].rows, dtype=torch.bool))
                break
            keep.append(live_B)
            resampled += spare
            wanted = spare
        self.generations += 1
        batch = self._assemble(parts, tables, torch.cat(keep))
        batch.metrics |= {f"time/{k}": v for k, v in clock.items()}
        if settings.max_resamples:
            batch.metrics["groups_resampled"] = float(resampled)
        return batch

    def _assemble(self, parts: list[Rollouts], tables: list[RewardTable], keep_B: Tensor) -> Batch:
        """Put the parts together, add correction and reference terms, and give credit."""
        settings = self.settings
        batch = Batch.of(parts, keep_B, mask_truncated=settings.mask_truncated_completions)
        if any(part.foreign for part in parts):
            own_BT, engine_BT = self._score_all(batch), batch.behaviour_logp_BT
            batch.correction_BT = truncated_importance_weights(
                own_BT, engine_BT, batch.mask_BT, cap=settings.importance_sampling_cap
            )
            batch.metrics |= mismatch_metrics(own_BT, engine_BT, batch.mask_BT)
            batch.behaviour_logp_BT = own_BT
        penalty_B = None
        if settings.beta and settings.kl_estimator != "exact":
            with self.policy.reference():
                batch.reference_logp_BT = self._score_all(batch)
            if settings.kl_estimator == "k1":
                gap_BT = k1(batch.behaviour_logp_BT, batch.reference_logp_BT) * batch.mask_BT
                penalty_B = settings.beta * parts[0].stands_for * gap_BT.sum(-1)
                batch.metrics["kl"] = float(gap_BT[keep_B].sum() / batch.mask_BT[keep_B].sum().clamp(min=1))
        table = merge_tables(tables, batch.mask_BT.shape[1])
        kept = dataclasses.replace(table, value_BR=table.value_BR.masked_fill(~keep_B[:, None], torch.nan))
        batch.describe(table, self._credit(batch.group_B, kept, batch.drawn_BT, penalty_B))
        self.tokens += int(batch.length_B.sum())
        return batch

    def _credit(
        self, group_B: Tensor, table: RewardTable, mask_BT: Tensor, penalty_B: Tensor | None = None
    ) -> advantages.Advantages:
        settings = self.settings
        if settings.credit == "decision":
            return advantages.combine_decisions(
                table, group_B, mask_BT, scale=settings.scale_rewards, leave_one_out=settings.leave_one_out
            )
        return advantages.combine(
            table,
            group_B,
            scale=settings.scale_rewards,
            leave_one_out=settings.leave_one_out,
            aggregation=settings.multi_objective_aggregation,
            penalty_B=penalty_B,
        )

    @torch.no_grad()
    def _score_all(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] of every trainable cell by the current policy, 0 elsewhere."""
        logp_BT = torch.zeros_like(batch.behaviour_logp_BT)
        for part, cells_N2, offset, _ in self._chunks(batch, torch.arange(len(batch.group_B))):
            scores = self.policy.score(part, cells_N2)
            logp_BT[cells_N2[:, 0] + offset, cells_N2[:, 1]] = scores.logp_N.float().cpu()
        return logp_BT

    def _next_prompts(self, count: int) -> list[Prompt]:
        prompts = draw_epochs(self.prompts, self.cursor, count, self.seed)
        self.cursor += count
        return prompts


def row_figures(terms: LossTerms) -> dict[str, float]:
    """Nats per row, of what the loss sees: log-probability, and divergence by k1 where a reference was scored.

    A loss that knows its divergence better reports `mean_kl` itself, which then counts.
    """
    figures = {"mean_log_prob": terms.stands_for * mean_per_row(terms.logp_BT, terms.mask_BT)}
    if terms.reference_logp_BT is not None:
        gap_BT = k1(terms.behaviour_logp_BT, terms.reference_logp_BT)
        figures["mean_kl"] = terms.stands_for * mean_per_row(gap_BT, terms.mask_BT)
    return figures


def pieces(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """The examples in order, cut so that each piece has at most `budget` characters, which are hardly fewer than tokens."""
    cut: list[list[Example]] = []
    used = 0
    for example in examples:
        size = len(example.prompt.text) + len(example.target)
        if not cut or used + size > budget:
            cut.append([])
            used = 0
        cut[-1].append(example)
        used += size
    return cut


class Loop(Protocol):
    """Anything that is trained one optimizer step at a time: `Grpo` here, `Sft` in sft.py."""

    step: int

    @property
    def settings(self) -> Any: ...

    def update(self) -> StepRecord: ...


def train(loop: Loop, on_step: Callable[[StepRecord], bool | None]) -> None:
    """Run a loop to its last step, reporting each; where the report answers True, that was the last one."""
    while loop.step < loop.settings.steps:
        if on_step(loop.update()):
            return
