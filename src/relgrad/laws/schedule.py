r"""Schedulers of discrete flow matching: how much of the text is already there at time t. Pure.

    P(x_t = x_1) = kappa_t,   P(x_t = x_0) = 1 - kappa_t,   per position;   kappa_0 = 0, kappa_1 = 1, rising

    polynomial:  kappa = t^n                  Gat et al. 2024, arXiv:2407.15595; n = 1 in FS-DFM's released configurations
    cosine:      kappa = 1 - cos(pi t / 2)    MaskGIT's, Chang et al. 2022, arXiv:2202.04200

`left` = 1 - kappa is computed without the subtraction, so that it keeps its digits near t = 1. A network is trained with one
scheduler and is told t: sampled with another, it is asked about states that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError

SchedulerKind = Literal["polynomial", "cosine"]


@dataclass(frozen=True)
class Scheduler:
    """kappa as a function of time, elementwise on tensors of t in [0, 1]. `exponent` (>= 1) is the polynomial's n."""

    kind: SchedulerKind = "polynomial"
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(SchedulerKind):
            raise RelgradError(f"scheduler {self.kind!r}: allowed are {', '.join(get_args(SchedulerKind))}")
        if self.kind == "polynomial" and not 1 <= self.exponent < math.inf:
            raise RelgradError(
                f"exponent={self.exponent}: must be >= 1 (1 is FS-DFM's); below 1 the jump rate is infinite at t = 0"
            )

    def kappa(self, t: Tensor) -> Tensor:
        """The share of positions that hold their final token at time t."""
        if self.kind == "cosine":
            return 2 * torch.sin(t * (math.pi / 4)).square()
        return t**self.exponent

    def left(self, t: Tensor) -> Tensor:
        """1 - kappa: the share that still holds its source token. Exactly 0 at t = 1."""
        if self.kind == "cosine":
            return torch.sin((1 - t) * (math.pi / 2))
        return -torch.expm1(self.exponent * torch.log(t))

    def slope(self, t: Tensor) -> Tensor:
        """d kappa / dt, per unit of time."""
        if self.kind == "cosine":
            return torch.sin(t * (math.pi / 2)) * (math.pi / 2)
        return self.exponent * t ** (self.exponent - 1)

    def stay_factor(self, t: Tensor, h: Tensor | float) -> Tensor:
        """(1 - kappa_{t+h}) / (1 - kappa_t) for t < 1: the chance that a source token of time t is one still at t + h.

        Exactly 0 where the step ends at 1, up to rounding of t + h.
        """
        end = t + h
        end = torch.where(1 - end <= 8 * torch.finfo(t.dtype).eps, torch.ones_like(end), end)
        return self.left(end) / self.left(t)

    def to_config(self) -> dict[str, Any]:
        """Plain data that `from_config` reads."""
        return {"scheduler_type": self.kind, "exponent": self.exponent}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Scheduler:
        """From plain data: `scheduler_type` and `exponent`, as Apple's configurations write them, perhaps under `flow`.

        Raises RelgradError where they are missing or not known.
        """
        section = config.get("flow", config)
        if not isinstance(section, Mapping) or "scheduler_type" not in section:
            raise RelgradError(
                f"no scheduler_type in the configuration; it has {', '.join(map(str, config)) or 'nothing'}"
            )
        exponent = section.get("exponent")
        if not isinstance(exponent, (int, float, type(None))):
            raise RelgradError(f"exponent={exponent!r}: must be a number")
        return Scheduler(section["scheduler_type"], 1.0 if exponent is None else float(exponent))

    def __str__(self) -> str:
        return "cosine" if self.kind == "cosine" else f"polynomial with exponent {self.exponent:g}"
