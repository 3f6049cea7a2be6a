"""The supervised loop: mean cross-entropy over the target tokens of a whole optimizer step, however it is cut into pieces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from pydantic import Field, model_validator

from relgrad.core.memory import spared
from relgrad.core.protocols import Averaged, Trainable
from relgrad.core.randomness import Draws, draw_epochs, generator
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.types import Example, StepRecord, SupervisedLoss
from relgrad.training import memory
from relgrad.training.length import Batch, LengthSettings
from relgrad.training.optimizer import Optimizer, OptimizerSettings, require_finite


class SftSettings(LengthSettings, OptimizerSettings):
    """A recipe's `sft` section. The target of a prompt is its `completion_column`; fill-in learns the labels instead."""

    batch_size: int = Field(16, ge=1, description="examples per optimizer step")
    gradient_accumulation_steps: int = Field(1, ge=1, description="pieces an optimizer step is computed in")
    learning_rate: float = Field(2e-5, gt=0)
    completion_column: str = "completion"

    @property
    def batch(self) -> Batch:
        """The examples of an optimizer step, whatever pieces it is computed in."""
        return Batch(self.batch_size, 1)

    @model_validator(mode="after")
    def _legal(self) -> SftSettings:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} must divide batch_size={self.batch_size}"
            )
        return self


class Beside(Protocol):
    """A term of the loss beside the supervised one."""

    def __call__(self, step: int, examples: Sequence[Example], scale: float) -> dict[str, float]:
        """Add `scale` times this process's share of its gradient to .grad; its figures, which are logged.

        `examples` are all of the step's. The loop divides by `scale` afterwards.
        """
        ...


class Sft:
    """The loop's state: `step` optimizer steps done. `update()` does one. Randomness depends on (seed, step, example) only.

    Of several processes each computes its share of every piece, and the gradients are added. `beside` is a further term.
    """

    def __init__(
        self,
        model: Trainable,
        examples: Sequence[Example],
        settings: SftSettings,
        *,
        seed: int = 0,
        ranks: Ranks = ALONE,
        beside: Beside | None = None,
    ) -> None:
        settings = settings.counted(len(examples))
        self.beside = beside
        self.model, self.examples, self.settings, self.seed, self.ranks = model, examples, settings, seed, ranks
        self.optimizer = Optimizer(dict(model.parameters()), settings, settings.total)
        self.step, self.tokens = 0, 0
        self._advice = memory.learning(settings.batch_size, settings.gradient_accumulation_steps)

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps of the loop, beside its optimizer."""
        return {"step": self.step, "tokens": self.tokens}

    def go_on_from(self, counters: dict[str, int]) -> None:
        """Take up what `counters` gave."""
        self.step, self.tokens = counters["step"], counters["tokens"]

    def update(self) -> StepRecord:
        """One optimizer step. Raises NonFinite before a bad gradient is applied. Whatever is raised, nothing was changed."""
        try:
            return self._update()
        except Exception:
            self.optimizer.clear()
            raise

    def _update(self) -> StepRecord:
        started = time.perf_counter()
        first = self.step * self.settings.batch_size
        examples = draw_epochs(self.examples, first, self.settings.batch_size, self.seed)
        size = len(examples) // self.settings.gradient_accumulation_steps
        share = self.ranks.share(size)
        sums = torch.zeros(4, dtype=torch.float64)
        for piece in range(self.settings.gradient_accumulation_steps if len(share) else 0):
            draws = Draws.of(generator(self.seed, "sft", self.step, piece), size).part(share.start, len(share))
            own = examples[piece * size + share.start : piece * size + share.stop]
            with spared("learning from examples", self._advice):
                loss = SupervisedLoss(*self.model.supervised_loss(own, draws))
                loss.total.backward()
            sums += torch.tensor(
                [float(loss.total.detach()), loss.targets, loss.nll or 0.0, loss.nll is None], dtype=torch.float64
            )
        total, summed, nll, unknown = self.ranks.sum(sums).tolist()
        require_finite(torch.tensor(total), "the loss", self.step)
        count = max(int(summed), 1)
        figures = self.beside(self.step, examples, float(count)) if self.beside is not None else {}
        self.ranks.add_gradients(self.optimizer.parameters.values())
        # the pieces left the gradient of a sum; one division makes it that of the mean, whatever the pieces were
        for parameter in self.optimizer.parameters.values():
            if parameter.grad is not None:
                parameter.grad /= count
        metrics = {"loss": total / count} | ({} if unknown else {"mean_nll": nll / count}) | figures
        with spared("applying the gradient", memory.OPTIMIZER):
            metrics |= self.optimizer.step(self.step)
        if isinstance(self.model, Averaged):
            self.model.after_update()
        self.step, self.tokens = self.step + 1, self.tokens + int(summed)
        seconds = time.perf_counter() - started
        metrics |= {"num_tokens": float(self.tokens), "step_time": seconds, "tokens_per_second": summed / seconds}
        return StepRecord(self.step, metrics)
