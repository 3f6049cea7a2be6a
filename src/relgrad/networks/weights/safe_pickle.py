"""Reading other people's pickles without running them: tensors and plain containers come out, everything else is refused.

Files of torch.save go through torch.load(weights_only=True); bare pickles (meta.pkl) through an Unpickler that finds no
global. Both know two stand-ins, so that the enumeration `model.ModelMode` of the nano_gpt family reads as its name: pickled by
value (Python up to 3.10, 3.12 on) or through getattr (some 3.11).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.weights.files import require_fetched

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first object of a file that torch.save wrote before it wrote zip archives."""

CONTROL = frozenset(range(32)) - frozenset(b"\t\n\f\r")
"""Bytes that no text has."""


def _mode(value: Any) -> str:
    """In place of model.ModelMode."""
    return str(value)


def _member(owner: Any, name: Any) -> str:
    """In place of getattr, for the one owner there is: ModelMode.LANGUAGE_MODEL is "language_model"."""
    if owner is not _mode:
        raise pickle.UnpicklingError("Unsupported global: GLOBAL builtins.getattr")
    return str(name).lower()


STAND_INS: dict[str, Callable[..., Any]] = {"model.ModelMode": _mode, "builtins.getattr": _member}
PLAIN = {"collections.OrderedDict": OrderedDict, "builtins.set": set, "builtins.frozenset": frozenset}


class _Unpickler(pickle.Unpickler):
    """Finds the stand-ins and plain containers, no other global."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {**STAND_INS, **PLAIN}
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return allowed[f"{module}.{name}"]


def load_tensors(path: Path, *, mmap: bool = False) -> Any:
    """What torch.save wrote, on the CPU. Raises RelgradError for what is no such file, is cut off, or would run code.

    With `mmap` only what is used is read, from archives; the tensors are views of the file, so copy them.
    """
    path = Path(path)
    if not path.is_file():
        raise RelgradError(f"{path}: no such file")
    require_fetched(path)
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] == b"PK":
        _require_archive(path)
    elif is_text(path):
        raise RelgradError(f"{path}: a text file, not a file of tensors that torch.save wrote")
    elif _first_object(path) != LEGACY_MAGIC:
        raise RelgradError(f"{path}: not a file that torch.save wrote (a pickle of something else)")
    try:
        with torch.serialization.safe_globals([(f, name) for name, f in STAND_INS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and head[:2] == b"PK")
    except Exception as error:  # a parser fed with a broken file may fail in any way
        raise _refusal(path, error) from None


def is_text(path: Path) -> bool:
    """Whether a file begins as text does, in whatever encoding of bytes: archives and pickles begin with control characters."""
    with open(path, "rb") as file:
        beginning = file.read(4096)
    return bool(beginning) and not CONTROL & set(beginning)


def load_plain(path: Path) -> Any:
    """The object of a bare pickle of plain containers (meta.pkl). Raises RelgradError, as `load_tensors` does."""
    path = Path(path)
    if not path.is_file():
        raise RelgradError(f"{path}: no such file")
    return _first_object(path)


def _first_object(path: Path) -> Any:
    with open(path, "rb") as file:
        try:
            return _Unpickler(file).load()
        except Exception as error:  # as above
            raise _refusal(path, error) from None


def _require_archive(path: Path) -> None:
    """Raise RelgradError unless the zip archive is whole and holds tensors."""
    if not zipfile.is_zipfile(path):
        raise RelgradError(
            f"{path}: cut off ({path.stat().st_size} bytes): the end of the archive is missing. Copy it again"
        )
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise RelgradError(f"{path}: a TorchScript program, not a checkpoint; give the file that torch.save wrote")
    if "data.pkl" not in names:
        raise RelgradError(f"{path}: a zip archive without tensors (no data.pkl in it)")


def _refusal(path: Path, error: Exception) -> RelgradError:
    """What went wrong, in a sentence; a global that was met is named."""
    met = re.search(r"GLOBAL (\S+)", str(error))
    if met:
        return RelgradError(
            f"{path}: refused, because loading it would run {met[1]}. Only tensors, plain containers and ModelMode are read. "
            "If you trust whoever made the file, save it again with tensors, numbers and text alone"
        )
    if isinstance(error, EOFError) or "truncated" in str(error) or "failed reading" in str(error):
        return RelgradError(f"{path}: cut off ({path.stat().st_size} bytes; {_brief(error)}). Copy it again")
    return RelgradError(f"{path}: not a file of tensors ({type(error).__name__}: {_brief(error)})")


def _brief(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return first[:200] or "nothing in it"
