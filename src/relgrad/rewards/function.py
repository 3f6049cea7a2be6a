"""Your own function, or one written for TRL, as it is: `rewards/mine.py:score`, `trl.rewards:accuracy_reward`.

`_calling` says with what it is called; sync and async functions alike.
"""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Annotated, Any

from pydantic import Field, field_validator

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.secrets import hide
from relgrad.core.settings import NamesCode, Strict


class Settings(Strict):
    """Where the function is."""

    function: Annotated[str, NamesCode()] = Field(
        description="path/to/file.py:name or package.module:name, from the working directory"
    )
    arguments: dict[str, Any] | None = Field(
        None, description="the name is a factory: call it with these to get the function"
    )

    @field_validator("function")
    @classmethod
    def _legal(cls, function: str) -> str:
        place, _, name = function.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError("write path/to/file.py:name or package.module:name")
        return function


def build(settings: Settings) -> Reward:
    """Import the function. Raises RelgradError when file, module or name is not there, or does not import."""
    place, _, name = settings.function.rpartition(":")
    module = _module(place)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RelgradError(f"reward function {settings.function!r}: {place} has no {name!r}.{hint}")
    function = getattr(module, name)
    if settings.arguments is not None:
        try:
            function = function(**settings.arguments)
        except (TypeError, ValueError) as error:
            names = ", ".join(settings.arguments)
            raise RelgradError(
                f"reward function {settings.function!r} refuses its arguments {names}: {hide(str(error))}"
            ) from error
    if not callable(function):
        raise RelgradError(
            f"reward function {settings.function!r} is {type(function).__name__}, which cannot be called"
        )
    return function


def name_of(settings: Settings) -> str:
    """The function's name, or the factory's."""
    return settings.function.rpartition(":")[2]


def _module(place: str) -> ModuleType:
    try:
        return registry.by_path(place, "rewards") if place.endswith(".py") else registry.by_name(place)
    except RelgradError:
        raise
    except (Exception, SystemExit) as error:
        raise RelgradError(f"reward function: cannot import {place!r} ({type(error).__name__}: {error})") from error
