"""The optimizer step both loops share: AdamW, a schedule that is a pure function of the step, and refusal of what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict


class OptimizerSettings(Strict):
    """AdamW, its schedule and gradient clipping; names and defaults as in transformers' TrainingArguments.

    `cosine` with `min_lr` is the schedule that transformers calls `cosine_with_min_lr`, with `min_lr` among its
    `lr_scheduler_kwargs`.
    """

    learning_rate: float = Field(1e-6, gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    min_lr: float = Field(0.0, ge=0, description="where linear and cosine end")
    decay_steps: int | None = Field(None, ge=1, description="the step at which they end; null: the last one")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _schedule_is_used(self) -> OptimizerSettings:
        ends = {"min_lr": self.min_lr, "decay_steps": self.decay_steps}
        if self.lr_scheduler_type == "constant" and (named := [name for name, value in ends.items() if value]):
            raise ValueError(
                f"{named[0]}={ends[named[0]]} says how a schedule ends, and lr_scheduler_type='constant' has no end: set "
                "lr_scheduler_type to cosine or linear, or leave it out"
            )
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr={self.min_lr} exceeds learning_rate={self.learning_rate}")
        return self

    @field_validator("lr_scheduler_type", mode="before")
    @classmethod
    def _named_here(cls, name: object) -> object:
        if name == "cosine_with_min_lr":
            raise ValueError("is called cosine here, and lr_scheduler_kwargs.min_lr is min_lr")
        return name


class NonFinite(RelgradError):
    """A loss or gradient that is NaN or infinite; the step was not taken and the weights are what they were."""


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then constant, or linear or cosine to `min_lr`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    end = steps if settings.decay_steps is None else settings.decay_steps
    done = min((step - settings.warmup_steps) / max(end - settings.warmup_steps, 1), 1.0)
    above = settings.learning_rate - settings.min_lr
    if settings.lr_scheduler_type == "linear":
        return settings.min_lr + above * (1 - done)
    if settings.lr_scheduler_type == "cosine":
        return settings.min_lr + above * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate


class Optimizer:
    """AdamW over named parameters. `state()` and `restore()` speak in flat dictionaries of tensors, ready for safetensors.

    On the CPU and on CUDA devices the whole step is one fused kernel. A step asks the device twice: for the norm
    of the gradients, which says whether all of them are finite, and for how far the weights moved.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], settings: OptimizerSettings, steps: int) -> None:
        if not parameters:
            raise RelgradError("nothing to train: the policy has no trainable parameters")
        self.parameters, self.settings, self.steps = dict(parameters), settings, steps
        self._fused = fuses(parameters.values())
        self._adam = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=self._fused or None,
        )
        # a fixed sample of tensors says how far a step moved the weights, without copying the model
        largest = sorted(self.parameters, key=lambda n: -self.parameters[n].numel())
        self._watched = [n for n in largest if self.parameters[n].numel() <= 1_000_000][:8]

    def step(self, step: int) -> dict[str, float]:
        """Check, clip and apply the accumulated gradients as optimizer step `step`; clears them. Raises NonFinite."""
        norm = self._finite_norm(step)
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.max_grad_norm, norm)
        rate = learning_rate(self.settings, step, self.steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        before = {n: self.parameters[n].detach().clone() for n in self._watched}
        self._adam.step()
        self.clear()
        return {
            "grad_norm": float(norm),
            "learning_rate": rate,
            "update/relative_norm": self._moved(before),
        }

    def _finite_norm(self, step: int) -> Tensor:
        """The norm of all gradients together. Raises NonFinite, naming the parameter to blame where there is one."""
        gradients = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if not math.isfinite(norm):
            for name, gradient in gradients.items():
                require_finite(gradient, f"the gradient of {name}", step)
            require_finite(norm, "the norm of the gradients", step)
        return norm

    def _moved(self, before: Mapping[str, Tensor]) -> float:
        """How far the watched weights are from what they were, relative to their norm then."""
        if not before:
            return 0.0
        moved = torch.stack([(self.parameters[n].detach() - old).square().sum() for n, old in before.items()])
        size = torch.stack([old.square().sum() for old in before.values()])
        moved_size, old_size = torch.stack([moved, size]).double().sum(-1).tolist()
        return math.sqrt(moved_size / old_size) if old_size else 0.0

    def clear(self) -> None:
        """Forget accumulated gradients."""
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by "parameter/moment", on the CPU: a checkpoint takes no memory of a GPU."""
        names = {id(p): n for n, p in self.parameters.items()}
        return {
            f"{names[id(p)]}/{key}": value.detach().to("cpu", copy=True)
            for p, moments in self._adam.state.items()
            for key, value in moments.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state()` gave. Raises RelgradError when it belongs to other parameters."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, moment = key.rpartition("/")
            by_name.setdefault(name, {})[moment] = value
        foreign = sorted(set(by_name) - set(self.parameters))
        if foreign:
            raise RelgradError(
                f"the optimizer state belongs to another model: it has {foreign[0]!r}, this one does not"
            )
        for name, moments in by_name.items():
            parameter = self.parameters[name]
            self._adam.state[parameter] = {
                k: v.to(parameter.device if self._fused or k != "step" else "cpu", copy=True)
                for k, v in moments.items()
            }


def fuses(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's fused AdamW takes all of them: floating-point tensors on CUDA devices or in the machine's own memory."""
    return all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)


def require_finite(value: Tensor, name: str, step: int) -> None:
    """Raise NonFinite, naming the tensor and how much of it is affected."""
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise NonFinite(
            f"step {step + 1}: {name} is not finite ({bad} of {value.numel()} entries). The step was not taken; the "
            "weights are those of the step before. Lower the learning rate, or look at the rewards and log-probs of this step"
        )
