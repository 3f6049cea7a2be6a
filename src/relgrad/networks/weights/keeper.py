"""What a policy keeps of its weights: those it trains, those it started from, and their moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

from relgrad.core.errors import RelgradError
from relgrad.networks.weights import files
from relgrad.networks.weights.average import UPDATES, Ema
from relgrad.networks.weights.reference import FrozenStart

AVERAGE = "ema.safetensors"


class Keeper:
    """A policy holds one for its network, and answers by it what the protocols ask of its weights.

    start    the frozen start; empty before `freeze_reference`
    average  the moving average of the trainable weights; None where `ema_decay` is 0
    """

    def __init__(self, network: torch.nn.Module, ema_decay: float = 0.0) -> None:
        self.network, self.start = network, FrozenStart()
        self.average = Ema(self.parameters(), ema_decay) if ema_decay else None
        self._at_start = False

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The trainable parameters by name, always in the same order."""
        return ((n, p) for n, p in self.network.named_parameters() if p.requires_grad)

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference. Raises RelgradError for sharded parameters."""
        self.start.take(self.parameters())

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the network has the weights of the start; its own come back whatever happens. Raises RelgradError without."""
        before, self._at_start = self._at_start, True
        try:
            with self.start.in_place(self.parameters()):
                yield
        finally:
            self._at_start = before

    def after_update(self) -> None:
        """Take the weights of this moment into their average, where one is kept."""
        if self.average is not None:
            self.average.update(self.parameters())

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the network has the averaged weights, where an average is kept; inside `reference`, those of the start still."""
        if self.average is None or self._at_start:
            return nullcontext()
        return self.average.in_place(self.parameters())

    def save_average(self, folder: Path) -> None:
        """Write the average, where one is kept, beside the weights that are in `folder`."""
        if self.average is not None:
            save_file({n: t.contiguous() for n, t in self.average.tensors().items()}, folder / AVERAGE)

    def require_average(self, folder: Path) -> None:
        """Raise RelgradError where an average is kept here and `folder` has none to go on from."""
        if self.average is not None and not (folder / AVERAGE).is_file():
            raise RelgradError(f"{folder}: no {AVERAGE}; it was saved by a policy with ema_decay: 0")

    def load_average(self, folder: Path) -> None:
        """Go on with the average that `save_average` wrote, where one is kept. Raises RelgradError for another network's."""
        self.require_average(folder)
        if self.average is not None:
            self.average.restore(files.read(folder / AVERAGE))


def take_average(network: torch.nn.Module, folder: Path) -> None:
    """Put the averaged weights that a folder holds in place of the network's own; nothing where it holds none.

    Raises RelgradError for averages of another network.
    """
    if not (folder / AVERAGE).is_file():
        return
    averages = files.read(folder / AVERAGE)
    averages.pop(UPDATES, None)
    own = dict(network.named_parameters())
    if foreign := sorted(averages.keys() - own.keys()):
        raise RelgradError(f"{folder / AVERAGE}: averages of another network, first {foreign[0]}")
    with torch.no_grad():
        for name, average in averages.items():
            own[name].copy_(average)
