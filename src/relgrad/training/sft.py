"""The supervised loop: mean cross-entropy over the target tokens of a whole optimizer step, however it is cut into pieces."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import Field, model_validator

from relgrad.core.protocols import Trainable
from relgrad.core.randomness import draw_epochs, generator
from relgrad.core.types import Example, StepRecord
from relgrad.training.optimizer import Optimizer, OptimizerSettings, require_finite


class SftSettings(OptimizerSettings):
    """A recipe's `sft` section. The target of a prompt is its `completion_column`; fill-in learns the labels instead."""

    steps: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=1, description="examples per optimizer step")
    gradient_accumulation_steps: int = Field(1, ge=1, description="pieces an optimizer step is computed in")
    learning_rate: float = Field(2e-5, gt=0)
    completion_column: str = "completion"

    @model_validator(mode="after")
    def _legal(self) -> SftSettings:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} must divide batch_size={self.batch_size}"
            )
        return self


class Sft:
    """The loop's state: `step` optimizer steps done. `update()` does one. Randomness depends on (seed, step) only."""

    COUNTERS = ("step", "tokens")

    def __init__(self, model: Trainable, examples: Sequence[Example], settings: SftSettings, *, seed: int = 0) -> None:
        self.model, self.examples, self.settings, self.seed = model, examples, settings, seed
        self.optimizer = Optimizer(dict(model.parameters()), settings, settings.steps)
        self.step, self.tokens = 0, 0

    def update(self) -> StepRecord:
        """One optimizer step. Raises NonFinite before a bad gradient is applied."""
        started = time.perf_counter()
        first = self.step * self.settings.batch_size
        examples = draw_epochs(self.examples, first, self.settings.batch_size, self.seed)
        size = len(examples) // self.settings.gradient_accumulation_steps
        total, count = 0.0, 0
        for piece in range(self.settings.gradient_accumulation_steps):
            noise = generator(self.seed, "sft", self.step, piece)
            loss, targets = self.model.supervised_loss(examples[piece * size : (piece + 1) * size], noise)
            require_finite(loss.detach(), "the loss", self.step)
            loss.backward()
            total, count = total + float(loss.detach()), count + targets
        # the pieces left the gradient of a sum; one division makes it that of the mean, whatever the pieces were
        for parameter in self.optimizer.parameters.values():
            if parameter.grad is not None:
                parameter.grad /= max(count, 1)
        metrics = {"loss": total / max(count, 1), "mean_nll": total / max(count, 1)}
        metrics |= self.optimizer.step(self.step)
        getattr(self.model, "after_update", lambda: None)()
        self.step, self.tokens = self.step + 1, self.tokens + count
        seconds = time.perf_counter() - started
        metrics |= {"num_tokens": float(self.tokens), "step_time": seconds, "tokens_per_second": count / seconds}
        return StepRecord(self.step, metrics)
