r"""A moving average of weights: theta' <- theta' + (1 - d_n) (theta - theta'),   d_n = min(decay, (1 + n) / (10 + n)).

After n updates the average does not remember the start longer than a tenth of them, so that short runs are averaged too. Kept in
float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.weights.whole import Named, require_whole

KEPT = "the moving average"
UPDATES = "updates"


class Ema:
    """The average of the parameters given, from their values at construction on. Raises RelgradError for sharded parameters."""

    def __init__(self, parameters: Named, decay: float) -> None:
        if not 0 <= decay < 1:
            raise RelgradError(f"decay={decay}: must be at least 0 (no average) and below 1")
        self.decay, self.updates = decay, 0
        self._mean = {n: p.detach().to(torch.float32, copy=True) for n, p in require_whole(parameters, KEPT)}

    @torch.no_grad()
    def update(self, parameters: Named) -> None:
        """Take the weights of this moment in. Call it once per optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in require_whole(parameters, KEPT):
            self._mean[name].lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def in_place(self, parameters: Named) -> Iterator[None]:
        """Inside, the parameters hold the average; they get their own tensors back whatever happens."""
        named = require_whole(parameters, KEPT)
        current = {n: p.data for n, p in named}
        try:
            for name, parameter in named:
                parameter.data = self._mean[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in named:
                parameter.data = current[name]

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs to go on: the averages by name and, as `updates`, their number."""
        return {**self._mean, UPDATES: torch.tensor(self.updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave. Raises RelgradError where names or shapes are not those of these parameters."""
        missing = sorted({*self._mean, UPDATES} - tensors.keys())
        foreign = sorted(tensors.keys() - {*self._mean, UPDATES})
        shapes = [n for n in self._mean if n in tensors and tensors[n].shape != self._mean[n].shape]
        if missing or foreign or shapes:
            raise RelgradError(
                f"averages of another network. Missing: {', '.join(missing[:5]) or 'none'}; unexpected: "
                f"{', '.join(foreign[:5]) or 'none'}; of another shape: {', '.join(shapes[:5]) or 'none'}"
            )
        self.updates = int(tensors[UPDATES])
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])
