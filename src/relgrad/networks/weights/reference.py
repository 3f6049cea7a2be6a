"""The reference of a divergence term: the trainable tensors as they were at the start, put in place by swapping pointers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.weights.whole import Named, require_whole

KEPT = "the frozen start"


class FrozenStart:
    """A copy of the trainable weights at the time of `take`."""

    def __init__(self) -> None:
        self._start: dict[str, Tensor] | None = None

    @property
    def taken(self) -> bool:
        return self._start is not None

    def take(self, parameters: Named) -> None:
        """Remember the weights of this moment. Raises RelgradError for sharded parameters."""
        self._start = {n: p.detach().clone() for n, p in require_whole(parameters, KEPT)}

    @contextmanager
    def in_place(self, parameters: Named) -> Iterator[None]:
        """Inside, the parameters hold the start; they get their own tensors back whatever happens. Raises RelgradError."""
        if self._start is None:
            raise RelgradError(
                "this policy was built without a reference: build it with reference=True (a recipe's beta > 0)"
            )
        named = require_whole(parameters, KEPT)
        current = {n: p.data for n, p in named}
        try:
            for name, parameter in named:
                parameter.data = self._start[name]
            yield
        finally:
            for name, parameter in named:
                parameter.data = current[name]
