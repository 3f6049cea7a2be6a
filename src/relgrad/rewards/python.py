"""A function of the Python script that started the run, for which there is no place to import it from (`relgrad.train`)."""

from __future__ import annotations

from pydantic import Field

from relgrad.core import live
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict


class Settings(Strict):
    """`relgrad.train` writes this section; a recipe for the command line names a function by `kind: function`."""

    function: str = Field(description="where it comes from")
    run: str = Field(description="the folder of the run that it was given for")


def build(settings: Settings) -> Reward:
    """The function. Raises RelgradError in any process but the script's own."""
    function: Reward = live.find(settings.run, settings.function)
    return function


def name_of(settings: Settings) -> str:
    """What stands behind the last dot or colon of the function's own name."""
    return settings.function.rpartition(":")[2].rpartition(".")[2].strip("<>")
