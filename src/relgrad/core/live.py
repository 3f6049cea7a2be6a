"""Objects of the script that runs, which no file can hold: functions without a name of their own, tasks built by hand.

A recipe names them by their run and where they come from; a process that only has the recipe is told that it cannot have them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from relgrad.core.errors import RelgradError

_objects: dict[tuple[str, str], Any] = {}


def keep(run: str, name: str, thing: Any) -> None:
    """Keep an object for a run of this process, in place of what the run had under that name."""
    _objects[run, name] = thing


def find(run: str, name: str) -> Any:
    """The object of that name. Raises RelgradError in a process that has none."""
    if (run, name) not in _objects:
        raise RelgradError(
            f"{name!r} is an object of the Python script that started the run {run}, and no file has it: start that script again, "
            "and use what `relgrad.train` returns there; or move it to the top of a module, where it can be named"
        )
    return _objects[run, name]


def place_of(thing: Any) -> str:
    """Where in Python code an object, or its class, comes from, for people: `train.py:make.<locals>.score`."""
    code = thing if isinstance(thing, (FunctionType, type)) else type(thing)
    return f"{script().name if code.__module__ == '__main__' else code.__module__}:{code.__qualname__}"


def script() -> Path:
    """The Python file that runs; `notebook` where Python runs without one."""
    return Path(str(vars(sys.modules["__main__"]).get("__file__") or "notebook"))


def importable(function: Any) -> str | None:
    """`train.py:score` or `package.module:score`, from where another process gets the same function; None for one without a place.

    A path is relative to the working directory where it lies below.
    """
    if not isinstance(function, FunctionType) or not function.__qualname__.isidentifier():
        return None
    place, name = function.__module__, function.__name__
    if place not in sys.modules or vars(sys.modules[place]).get(name) is not function:
        return None
    if place != "__main__":
        return f"{place}:{name}"
    if not script().is_file():
        return None
    path = script().resolve()
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{path}:{name}"
