"""Finding a policy, reward, task or stage by the `kind` a recipe names: one module each, no list to keep in step.

A kind is the name of a module in `relgrad/<room>/`, or, for your own, an importable dotted name (`my_package.my_reward`)
or a path to a Python file (`rewards/mine.py`), looked up from the working directory. Each module offers

    policies:  Settings (pydantic), build(settings, seed, start, reference) -> Policy, toys() -> contract instances
    rewards:   Settings, build(settings) -> reward callable
    judges:    Settings, build(settings, seed, policy) -> Trainable with `require` (enough held-out prompts) and `audit`
    tasks:     Settings, load(settings, seed) -> Task
    backends:  Settings, build(settings, seed) -> Backend (backends/protocol.py)
    stages:    Settings (built on stages/settings.py), KIND (stages/kind.py)
    losses:    build(settings: GrpoSettings) -> Loss; the built-in ones are in losses.py and named by `grpo.loss_type`
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from relgrad.core.errors import RelgradError

ROOMS = ("policies", "rewards", "tasks", "judges", "stages", "backends")
OFFERS = {
    "policies": ("Settings", "build"),
    "rewards": ("Settings", "build"),
    "tasks": ("Settings", "load"),
    "judges": ("Settings", "build"),
    "backends": ("Settings", "build"),
    "losses": ("build",),
}
"""What every module of a room has; a stage's is checked by stages/kind.py."""
executing: list[Path] = []
"""Files of the user's that are being executed at this moment, the innermost last."""


@functools.cache
def kinds(room: str) -> tuple[str, ...]:
    """The built-in kinds of a room: its modules that offer `Settings` (names starting with _ are helpers)."""
    package = importlib.import_module(f"relgrad.{room}")
    names = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return tuple(sorted(n for n in names if _offers_settings(room, n)))


def _offers_settings(room: str, name: str) -> bool:
    spec = importlib.util.find_spec(f"relgrad.{room}.{name}")
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).read_text(encoding="utf-8")
    return bool(re.search(r"^class Settings|import .*\bSettings\b", text, re.M))


def find(room: str, kind: str) -> ModuleType:
    """The module of `kind`.

    Raises RelgradError naming what was received, what there is, and the nearest name; or what a module of the user's raised when it
    was executed, and where.
    """
    if is_own(kind):
        return _offering(room, kind, _users(room, kind))
    if room == "losses":
        raise RelgradError(
            f"grpo.loss={kind!r}: give a .py file or an importable module; built-in losses are `loss_type`s"
        )
    names = kinds(room)
    if kind not in names:
        near = difflib.get_close_matches(kind, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RelgradError(f"{room}: unknown kind {kind!r}. Known: {', '.join(names)}; or your own .py file.{hint}")
    return importlib.import_module(f"relgrad.{room}.{kind}")


def _users(room: str, kind: str) -> ModuleType:
    """A module of the user's, by its path or dotted name."""
    try:
        return by_path(kind, room) if kind.endswith(".py") else by_name(kind)
    except RelgradError:
        raise
    except ModuleNotFoundError as error:
        raise RelgradError(
            f"{room}: cannot import {kind!r} ({error}); give an importable module or a .py path"
        ) from None
    except (Exception, SystemExit) as error:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if f.filename != __file__ and "importlib" not in f.filename
        ]
        lines = "".join(traceback.format_list(frames)).rstrip()
        raise RelgradError(f"{room}: {kind!r} cannot be executed ({type(error).__name__}: {error})\n{lines}") from error


def _offering(room: str, kind: str, module: ModuleType) -> ModuleType:
    """The module, which has what modules of its room have. Raises RelgradError where it has not."""
    for part in OFFERS.get(room, ()):
        if part not in vars(module):
            parts = " and ".join(f"`{name}`" for name in OFFERS[room])
            raise RelgradError(
                f"{room}: {kind!r} offers no `{part}`; a module of your own has {parts} here (docs/write-your-own.md)"
            )
    return module


def is_own(kind: str) -> bool:
    """Whether a kind is written as a module of the user's is: a path to a Python file, or a dotted name."""
    return kind.endswith(".py") or ("." in kind and all(part.isidentifier() for part in kind.split(".")))


def short(kind: str) -> str:
    """A kind's short name: `exact`; `mine` of `rewards/mine.py`; `my_reward` of `my_package.my_reward`."""
    return Path(kind).stem if kind.endswith(".py") else kind.rpartition(".")[2]


def by_name(name: str) -> ModuleType:
    """A module of the user's by its dotted name, looked up from the working directory too. Raises what importing it raises.

    A file that was executed before, as a path or under another name, is not executed again.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.has_location and (module := _executed(Path(str(spec.origin)))) is not None:
            return module
    return importlib.import_module(name)


def file_of(name: str) -> Path | None:
    """The file of a module, looked up as `by_name` does, without executing it; None where there is none."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(str(spec.origin)) if spec is not None and spec.has_location else None


def by_path(place: str, room: str) -> ModuleType:
    """The module of a Python file, which is executed once however often and under whatever path it is named.

    Raises RelgradError, beginning with `room`, where there is no such file; and what executing it raises.
    """
    path = Path(place)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # too long, or a null character
        raise RelgradError(f"{room}: {place[:60]!r} is no path of a file ({error.__class__.__name__})") from None
    if not is_file:
        raise RelgradError(f"{room}: no file {place!r} (working directory {Path.cwd()})")
    path = path.resolve()
    name = f"relgrad_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if (module := sys.modules.get(name) or _executed(path)) is not None:
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RelgradError(f"{room}: {place!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    executing.append(path)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        executing.pop()
    return module


def _executed(path: Path) -> ModuleType | None:
    """The module that was made of this file, if there is one, under whatever name."""
    path = path.resolve()
    for module in list(sys.modules.values()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(file, str) and file.endswith(path.name) and Path(file).resolve() == path:
            return module
    return None
