"""How long a loop trains: for so many optimizer steps, or for so many epochs of the training prompts, counted in steps."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict

STEPS = 100
"""Optimizer steps where a recipe says neither how many nor for how many epochs."""


class Batch(NamedTuple):
    """So many training prompts are taken at once, and serve for so many optimizer steps."""

    prompts: int
    steps: int


class LengthSettings(Strict, ABC):
    """`steps` or `epochs`; an epoch takes every training prompt of the task once.

    What is written to a recipe is what was asked for: epochs stay epochs, also once they are counted.
    """

    steps: int | None = Field(None, ge=1, description="optimizer steps in all; null: 100, or what `epochs` come to")
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False, description="passes over the training prompts")

    @property
    @abstractmethod
    def batch(self) -> Batch:
        """How prompts become steps."""

    @property
    def total(self) -> int:
        """The optimizer steps in all, once epochs are counted."""
        assert self.steps is not None
        return self.steps

    @property
    def in_epochs(self) -> str:
        """To be put after the number of steps: ` (2 epochs)`; nothing where the steps themselves were asked for."""
        return "" if self.epochs is None else f" ({self.epochs:g} epoch{'' if self.epochs == 1 else 's'})"

    def counted(self, prompts: int, of: str = "the training prompts") -> Self:
        """The settings with their epochs of `prompts` training prompts counted in steps, in whole batches, rounded up.

        Raises RelgradError, naming what the prompts are of, where they have no end: then their number is sys.maxsize.
        """
        if self.epochs is None or self.steps is not None:
            return self
        if prompts == sys.maxsize:
            raise RelgradError(
                f"epochs={self.epochs:g}: {of} never come to an end (a stream), so that there are no epochs of them; set steps"
            )
        epochs = Fraction(
            repr(self.epochs)
        )  # 1.1 is eleven tenths: as a float it is a little more, and would be rounded up
        return self.model_copy(update={"steps": math.ceil(epochs * prompts / self.batch.prompts) * self.batch.steps})

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        steps, epochs = values.get("steps"), values.get("epochs")
        if steps is not None and epochs is not None:
            raise ValueError(
                f"steps={steps} and epochs={epochs} both say how long to train: leave one out, or set it to null where "
                "it is inherited"
            )
        return {**values, "steps": STEPS} if steps is None and epochs is None else values

    @model_serializer(mode="wrap")
    def _as_asked_for(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if self.epochs is None else {**values, "steps": None}
