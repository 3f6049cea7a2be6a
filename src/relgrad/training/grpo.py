r"""The GRPO loop: experience in, credit, one update after the other. Names no policy, reward, loss or source.

    for every generation batch:
        experience ~ source                                     by default: sampled from the policy and rewarded (experience.py)
        A_i        = (r_i - mean_group) / std_group             objectives/advantages.py
        for every optimizer step:                               `num_iterations` x `steps_per_generation`
            L      = loss(log pi, log pi_behaviour, A, ...)     objectives/losses.py; + sft_coef x cross-entropy, where asked for
            theta  = AdamW(theta, dL/dtheta)

The gradient is taken in two passes, so that cutting a batch into memory-sized chunks is exact for every loss: first the loss
is differentiated with respect to the log-probabilities (a leaf; on the first step after sampling these are the recorded ones and
cost nothing), then chunk by chunk the policy scores its cells again and back-propagates that slice. Rows whose slice is
zero are not computed at all.

Several processes (core/ranks.py) hold the same tables [B, T] and compute the same loss of the whole step; each scores and
back-propagates the rows it wrote itself, and the gradients are added. All randomness is derived from (seed, generation, prompt),
so a state needs no random-number state, and what is drawn does not depend on the number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.memory import spared
from relgrad.core.protocols import Averaged, CostlyEntropy, Loss, LossTerms, Policy, Rewards, Served, Supervised
from relgrad.core.randomness import Draws, generator
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.tables import merge_tables, require_scored
from relgrad.core.types import CellScores, Example, Prompt, Rollouts, StepRecord, SupervisedLoss
from relgrad.objectives.divergences import k1
from relgrad.objectives.losses import mean_per_row, shaped_weights, truncated_importance_weights
from relgrad.training import memory
from relgrad.training.batch import Batch, mismatch_metrics
from relgrad.training.credit import give_credit
from relgrad.training.experience import Collected, Fresh, PromptStream, Source, Writer
from relgrad.training.optimizer import Optimizer, require_finite
from relgrad.training.parity import Seen, require_engines_agree, require_parity
from relgrad.training.remote import require_server_agrees
from relgrad.training.replay import Replay
from relgrad.training.searched import Searched
from relgrad.training.settings import GrpoSettings
from relgrad.training.targets import example_of

__all__ = ["Grpo", "GrpoSettings", "Loop", "train"]

Chunk = tuple[Rollouts, Tensor, int, CellScores | None]
"""(rollouts, cells in their own rows, number of their first row in the batch, the cells' scores where known)"""


class Grpo:
    """The loop's state: `step` optimizer steps done, the batch in use, the source it came from. `update()` does one step.

    `source` makes a source of one's own from the default one; None: fresh experience, with the past and tree search mixed in where
    the settings ask for them. `writer` writes completions in the policy's place.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        loss: Loss,
        settings: GrpoSettings,
        *,
        seed: int = 0,
        ranks: Ranks = ALONE,
        source: Callable[[Fresh], Source] | None = None,
        writer: Writer | None = None,
    ) -> None:
        settings = settings.counted(len(prompts))
        self.policy, self.loss = policy, loss
        self.settings, self.seed, self.ranks = settings, seed, ranks
        if settings.sft_coef and not isinstance(policy, Supervised):
            raise RelgradError(
                f"sft_coef={settings.sft_coef:g} needs a policy that can be trained by supervision, but {type(policy).__name__} "
                "has no supervised_loss; set sft_coef to 0"
            )
        costly = isinstance(policy, CostlyEntropy) and policy.costly_entropy
        self._exact_entropy = "entropy" in loss.needs or not costly
        self.optimizer = Optimizer(dict(policy.parameters()), settings, settings.total)
        self.stream = PromptStream(prompts, seed)
        fresh = Fresh(policy, self.stream, rewards, settings, seed, ranks, writer)
        self.source: Source = fresh
        if source is not None:
            self.source = source(fresh)
        elif settings.replay is not None:
            self.source = Replay(fresh, settings, seed)
        if source is None and settings.search is not None:
            self.source = Searched(self.source, fresh, policy, settings, seed)
        self.step, self.generations, self.tokens = 0, 0, 0
        self.batch: Batch | None = None
        self._parity_seen = False

    @property
    def cursor(self) -> int:
        """Prompts consumed."""
        return self.stream.cursor

    @property
    def batch_is_used_up(self) -> bool:
        """Whether the next step begins with a new generation batch."""
        per_batch = self.settings.num_iterations * self.settings.steps_per_generation
        return self.batch is None or self.batch.used == per_batch

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps of the loop, beside optimizer, batch and source."""
        return {
            "step": self.step,
            "cursor": self.stream.cursor,
            "generations": self.generations,
            "tokens": self.tokens,
        }

    def go_on_from(self, counters: dict[str, int]) -> None:
        """Take up what `counters` gave."""
        self.step, self.generations, self.tokens = counters["step"], counters["generations"], counters["tokens"]
        self.stream.cursor = counters["cursor"]
        self.policy.version = self.step

    # ------------------------------------------------------------------ one optimizer step

    def update(self) -> StepRecord:
        """Generate if the batch is used up, then one optimizer step. Raises NonFinite before a bad gradient is applied.

        Whatever is raised, the loop is where it was before the step: a checkpoint of it goes on with the same step.
        """
        counters, batch, drew = self.counters(), self.batch, self.batch_is_used_up
        try:
            return self._update()
        except Exception:
            if drew:
                self.source.undo()
            self.go_on_from(counters)
            self.batch = batch
            self.optimizer.clear()
            raise

    def _update(self) -> StepRecord:
        started = time.perf_counter()
        settings, metrics = self.settings, {}
        if self.batch is None or self.batch_is_used_up:
            self.batch = self.generate()
            metrics.update(self.batch.metrics)
        batch = self.batch
        update_started = time.perf_counter()
        order = generator(self.seed, "order", self.generations, batch.used // settings.steps_per_generation)
        rows = batch.minibatches(settings.steps_per_generation, order)[batch.used % settings.steps_per_generation]
        with spared("scoring completions", memory.scoring(settings)):
            supervised = self._supervise(batch, rows) if settings.sft_coef else {}
            metrics.update(batch.figures() | self._accumulate(batch, rows) | supervised)
        if not self._parity_seen and "parity/max_abs" in metrics:  # the first step of this process that measures it
            require_parity(self.policy, metrics["parity/max_abs"], metrics["parity/mean_abs"], self.step)
            self._parity_seen = True
        metrics["loss"] += settings.sft_coef * metrics.get("sft_loss", 0.0)
        self.ranks.add_gradients(self.optimizer.parameters.values())
        with spared("applying the gradient", memory.OPTIMIZER):
            metrics.update(self.optimizer.step(self.step))
        self.policy.version += 1
        if isinstance(self.policy, Averaged):
            self.policy.after_update()
        self.step += 1
        batch.used += 1
        now = time.perf_counter()
        metrics["time/update"], metrics["step_time"] = now - update_started, now - started
        metrics["num_tokens"] = self.tokens
        if batch.used == 1:
            metrics["tokens_per_second"] = batch.metrics["completions/total_tokens"] / (now - started)
        return StepRecord(self.step, metrics)

    def _supervise(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """Leave this process's share of sft_coef x the gradient of the rows' prompts' mean cross-entropy in .grad, empty so far."""
        assert isinstance(self.policy, Supervised)
        prompts = batch.prompts
        column = self.settings.sft_column
        groups = batch.group_B[rows].unique().tolist()
        examples = [example_of(prompts[group], column, "grpo.sft_column") for group in groups]
        share = self.ranks.share(len(examples))
        draws = Draws.of(generator(self.seed, "sft", self.step), len(examples))
        total_and_count = torch.zeros(2, dtype=torch.float64)
        first = share.start
        for piece in pieces(examples[share.start : share.stop], self.settings.micro_batch_tokens):
            loss = SupervisedLoss(*self.policy.supervised_loss(piece, draws.part(first, len(piece))))
            loss.total.backward()
            total_and_count += torch.tensor([float(loss.total.detach()), loss.targets], dtype=torch.float64)
            first += len(piece)
        total, count = self.ranks.sum(total_and_count).tolist()
        require_finite(torch.tensor(total), "the supervised loss", self.step)
        # the pieces left the gradient of a sum; one factor makes it that of the weighted mean, whatever the pieces were
        for parameter in self.optimizer.parameters.values():
            if parameter.grad is not None:
                parameter.grad *= self.settings.sft_coef / max(count, 1)
        return {"sft_loss": total / max(count, 1)}

    def _accumulate(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """Add this process's share of dL/dtheta of one minibatch to the parameters' .grad; return the minibatch's metrics."""
        fresh = batch.policy_version == self.policy.version
        terms, kept = self._terms(batch, rows, fresh)
        leaves = [t for t in (terms.logp_BT, terms.entropy_BT, terms.kl_BT) if t is not None]
        loss, metrics = self.loss(terms)
        require_finite(loss.detach(), "the loss", self.step)
        metrics = row_figures(terms) | {"loss": float(loss.detach())} | metrics
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        require_finite(torch.stack([s.abs().max() for s in slopes]), "the loss's slope in the log-probs", self.step)
        needed = (torch.stack([s.abs().amax(-1) for s in slopes]).amax(0) > 0).nonzero()[:, 0]
        # the slopes' rows are the minibatch's; the parts' rows are local to each part
        slope_BT = [torch.zeros_like(batch.behaviour_logp_BT).index_copy_(0, rows, s) for s in slopes]
        seen = Seen()
        for part, cells_N2, offset, cached in kept if kept and len(needed) else self._chunks(batch, rows[needed]):
            scores = cached or self.policy.score(
                part, cells_N2, entropy=self._exact_entropy, reference_kl=terms.kl_BT is not None
            )
            outputs = [scores.logp_N]
            outputs += [scores.entropy_N] if terms.entropy_BT is not None and scores.entropy_N is not None else []
            outputs += [scores.kl_N] if scores.kl_N is not None else []
            row_N, step_N = cells_N2[:, 0] + offset, cells_N2[:, 1]
            grads = [s[row_N, step_N].to(o) for s, o in zip(slope_BT, outputs, strict=True)]
            torch.autograd.backward(outputs, grads)
            seen.add(scores, batch.behaviour_logp_BT[row_N, step_N])
        return metrics | seen.figures(self.ranks, fresh)

    def _terms(self, batch: Batch, rows: Tensor, fresh: bool) -> tuple[LossTerms, list[Chunk]]:
        """What the loss sees of the minibatch; log-probs, entropy and KL are leaves.

        Where they had to be computed and one chunk holds everything, the chunk with its graph is returned too: then the
        gradient needs no second pass.
        """
        needs = self.loss.needs & {"entropy", "kl"}
        logp_BT, entropy_BT, kl_BT = batch.behaviour_logp_BT[rows], None, None
        kept: list[Chunk] = []
        if needs or not fresh:
            columns, kept = self._score_columns(batch, rows, needs)
            logp_BT = columns[0][rows] if not fresh else logp_BT
            entropy_BT = columns[1][rows].requires_grad_() if "entropy" in needs else None
            kl_BT = columns[2][rows].requires_grad_() if "kl" in needs else None

        def of_rows(table_BT: Tensor | None) -> Tensor | None:
            return None if table_BT is None else table_BT[rows]

        terms = LossTerms(
            logp_BT=logp_BT.clone().requires_grad_(),
            behaviour_logp_BT=batch.behaviour_logp_BT[rows],
            advantage_BT=batch.credit(rows),
            mask_BT=batch.mask_BT[rows],
            batch_decisions=float(batch.mask_BT[batch.keep_B].sum()) / self.settings.steps_per_generation,
            max_decisions=self.policy.max_decisions,
            reference_logp_BT=of_rows(batch.reference_logp_BT),
            entropy_BT=entropy_BT,
            kl_BT=kl_BT,
            correction_BT=of_rows(batch.correction_BT),
            stands_for=batch.stands_for,
            group_B=batch.group_B[rows],
            step_rows=len(rows),
            step_decisions=float(batch.mask_BT[rows].sum()),
        )
        return terms, kept

    def _score_columns(self, batch: Batch, rows: Tensor, needs: frozenset[str]) -> tuple[list[Tensor], list[Chunk]]:
        """(log-prob, entropy and KL [B, T] by the current policy, this process's only chunk with its graph)."""
        columns = torch.zeros(3, *batch.behaviour_logp_BT.shape)
        chunks = list(self._chunks(batch, rows))
        single = len(chunks) == 1
        kept: list[Chunk] = []
        with torch.set_grad_enabled(single):
            for part, cells_N2, offset, _ in chunks:
                entropy = self._exact_entropy and (single or "entropy" in needs)
                scores = self.policy.score(part, cells_N2, entropy=entropy, reference_kl="kl" in needs)
                for column, value in zip(columns, scores, strict=True):
                    if value is not None:
                        column[cells_N2[:, 0] + offset, cells_N2[:, 1]] = value.detach().float().cpu()
                kept += [(part, cells_N2, offset, scores)] if single else []
        return list(self.ranks.sum(columns)), kept

    def _chunks(self, batch: Batch, rows: Tensor) -> Iterator[Chunk]:
        """Those of the given rows that are this process's, in pieces that the policy planned, not scored yet."""
        for part, own, first in batch.local(rows):
            for cells_N2 in self.policy.plan(part, own, self.settings.micro_batch_tokens):
                yield part, cells_N2, first, None

    # ------------------------------------------------------------------ one generation batch

    def generate(self) -> Batch:
        """Take the next batch from the source and give credit."""
        with spared("drawing completions", memory.drawing(self.settings)):
            collected = self.source.draw(self.generations, self.settings.num_prompts)
        self.generations += 1
        with spared("scoring completions", memory.scoring(self.settings)):
            return self._assemble(collected)

    def _assemble(self, collected: Collected) -> Batch:
        """Put the parts together, add correction and reference terms, and give credit."""
        settings, keep_B = self.settings, collected.keep_B
        tables = [part.rewards for part in collected.parts]
        require_scored(tables)
        batch = Batch.of(
            collected.parts, keep_B,
            mask_truncated=settings.mask_truncated_completions, policy_version=self.policy.version,
        )  # fmt: skip
        batch.metrics |= collected.metrics
        self._correct(batch)
        penalty_B = self._refer(batch)
        table = merge_tables(tables, batch.mask_BT.shape[1])
        credited = table.only(keep_B)
        batch.describe(table, give_credit(settings, credited, batch.group_B, batch.drawn_BT, penalty_B), self.policy)
        batch.learn_only_what_is_better()
        self.tokens += batch.written_tokens
        return batch

    def _correct(self, batch: Batch) -> None:
        """Where another proposal drew rows: ratios against this policy's own log-probs, and weights for the difference."""
        proposal_BT = batch.proposal_logp_BT()
        if proposal_BT is None:
            return
        own_BT = self._score_all(batch)
        proposed_BT = batch.mask_BT & ~proposal_BT.isnan() & batch.keep_B[:, None]
        weight_BT = truncated_importance_weights(
            own_BT, proposal_BT, proposed_BT, cap=self.settings.importance_sampling_cap
        )
        gamma_B = batch.shaping_B
        shaped_BT = proposed_BT & ~gamma_B.isnan()[:, None]
        batch.correction_BT = torch.where(shaped_BT, shaped_weights(own_BT, gamma_B[:, None]), weight_BT)
        batch.metrics |= mismatch_metrics(own_BT, proposal_BT, proposed_BT & ~shaped_BT)
        if self.settings.remote is not None:
            assert isinstance(self.policy, Served)  # as Remote requires
            temperature = self.policy.served_law().temperature
            require_server_agrees(batch, own_BT, self.settings.remote, temperature, self.step)
        if not self._parity_seen:
            require_engines_agree(self.policy, batch, own_BT, self.step)
        batch.behaviour_logp_BT = torch.where(proposal_BT.isnan(), batch.behaviour_logp_BT, own_BT)

    def _refer(self, batch: Batch) -> Tensor | None:
        """Score the reference where the loss needs it; beta x k1 [B] where that is charged to the rows."""
        settings = self.settings
        if not settings.beta or settings.kl_estimator == "exact":
            return None
        with self.policy.reference():
            batch.reference_logp_BT = self._score_all(batch)
        if settings.kl_estimator != "k1":
            return None
        gap_BT = k1(batch.behaviour_logp_BT, batch.reference_logp_BT) * batch.mask_BT
        kept_B = batch.keep_B
        batch.metrics["kl"] = float(gap_BT[kept_B].sum() / batch.mask_BT[kept_B].sum().clamp(min=1))
        return settings.beta * batch.stands_for * gap_BT.sum(-1)

    @torch.no_grad()
    def _score_all(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] of every trainable cell of the kept rows by the current policy, 0 elsewhere."""
        logp_BT = torch.zeros_like(batch.behaviour_logp_BT)
        for part, cells_N2, offset, _ in self._chunks(batch, batch.keep_B.nonzero()[:, 0]):
            scores = self.policy.score(part, cells_N2)
            logp_BT[cells_N2[:, 0] + offset, cells_N2[:, 1]] = scores.logp_N.float().cpu()
        return self.ranks.sum(logp_BT)

    # ------------------------------------------------------------------ what goes on depends on, for checkpoints

    def save(self, folder: Path) -> None:
        """What the source keeps; see Source."""
        self.source.save(folder)

    def load(self, folder: Path) -> None:
        self.source.load(folder)


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
    """Anything that is trained one optimizer step at a time: `Grpo` here, `Sft` in sft.py, a loop of your own."""

    step: int
    optimizer: Optimizer

    @property
    def settings(self) -> Any: ...

    def update(self) -> StepRecord: ...

    def counters(self) -> dict[str, int]: ...

    def go_on_from(self, counters: dict[str, int]) -> None: ...


def train(loop: Loop, on_step: Callable[[StepRecord], bool | None]) -> None:
    """Run a loop to its last step, reporting each; where the report answers True, that was the last one."""
    while loop.step < loop.settings.steps:
        if on_step(loop.update()):
            return
