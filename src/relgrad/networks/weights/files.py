"""Files of weights, read with care: one that is cut off, a mere pointer, or not made of numbers is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from relgrad.core.errors import RelgradError

POINTER = b"version https://git-lfs.github.com/spec/"
"""How the little text begins that git leaves in place of a file that `git lfs pull` has not fetched."""
WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DataParallel, torch.compile, FSDP and checkpointing wrappers put into names."""


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises RelgradError for a file that is none, is cut off, or a pointer."""
    file = Path(file)
    require_fetched(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise damaged(file, error) from None


def is_wrapped(file: Path) -> bool:
    """Whether names in a safetensors file carry those of wrappers. Raises RelgradError as `read` does."""
    require_fetched(file)
    try:
        with safe_open(file, "pt") as opened:
            return any(WRAPPERS.search(name) for name in opened.keys())  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise damaged(file, error) from None


def damaged(file: Path, error: Exception) -> RelgradError:
    """What is said of a file that cannot be read."""
    size = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
    brief = " ".join(str(error).split())[:200]
    return RelgradError(
        f"{file}: cannot be read ({size}; {type(error).__name__}: {brief}). It is cut off or damaged: copy it again, or take "
        "another checkpoint"
    )


def require_fetched(file: Path) -> None:
    """Raise RelgradError for a file whose content git-lfs has not fetched."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(len(POINTER))
    except OSError as error:
        raise damaged(Path(file), error) from None
    if head == POINTER:
        raise RelgradError(
            f"{file}: a git-lfs pointer, not the file itself ({Path(file).stat().st_size} bytes). Fetch it with `git lfs pull` in "
            "its repository, or download it again"
        )


def require_finite(named: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Raise RelgradError for weights with NaN or infinity among them, naming the first tensor that has them."""
    broken = [(n, t) for n, t in named if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        name, tensor = broken[0]
        others = f", and {len(broken) - 1} other tensors have some" if len(broken) > 1 else ""
        raise RelgradError(
            f"{source}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} weights in {name} are NaN or infinite{others}. "
            "Nothing can be drawn or trained with such weights: copy the files again, or take an earlier checkpoint"
        )


def unwrapped(state: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """The same values by the network's own names, whatever wrappers stand in them. Raises RelgradError where two become one."""
    bare: dict[str, Any] = {}
    for name, value in state.items():
        own = WRAPPERS.sub("", str(name))
        if own in bare:
            raise RelgradError(f"{source}: {own} is in it twice, once as {name}")
        bare[own] = value
    return bare
