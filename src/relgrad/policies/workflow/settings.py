"""What a recipe says of a workflow policy."""

from __future__ import annotations

from pydantic import Field, field_validator

from relgrad.core.settings import Strict


class Settings(Strict):
    """A policy that writes list programs, operator by operator, looking at what the examples have become."""

    max_steps: int = Field(
        3, ge=1, le=8, description="operators at the most; a program that does what the examples show ends before"
    )
    hidden: int = Field(128, ge=1, description="units of each of the network's three hidden layers")
    temperature: float = Field(1.0, gt=0)
    search_evaluations: tuple[int, ...] = Field(
        (16, 64, 200),
        description="programs that a search may execute at which evaluations tell how many tasks it has solved; none: no search",
    )

    @field_validator("search_evaluations")
    @classmethod
    def _counted(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in counts):
            raise ValueError(f"search_evaluations counts executed programs, at least 1; received {list(counts)}")
        return tuple(sorted(set(counts)))
