"""Names of tensors: those of a family's own code, and those of the class of transformers that computes the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

Pairs = Sequence[tuple[str, str]]
"""How names begin in the own code and in the class; # is the number of a layer."""


def patterns(pairs: Pairs) -> dict[str, str]:
    """Regular expressions from own names to the class's, as `from_pretrained(key_mapping=...)` takes them."""
    return {"^" + re.escape(own).replace(r"\#", r"(\d+)"): to.replace("#", r"\1") for own, to in pairs}


def to_library(name: str, pairs: Pairs) -> str:
    """The class's name of a tensor; a name that is the class's already stays."""
    return _renamed(name, patterns(pairs))


def to_own(name: str, pairs: Pairs) -> str:
    """The own code's name of a tensor that the class names."""
    return _renamed(name, patterns([(to, own) for own, to in pairs]))


def modules_to_own(modules: Sequence[str], pairs: Pairs) -> list[str]:
    """Names of linear layers, whole (`model.layers.0.mlp.up_proj`) or their last part, as the own code calls them."""
    return _modules(modules, [(to, own) for own, to in pairs])


def modules_to_library(modules: Sequence[str], pairs: Pairs) -> list[str]:
    """The same the other way round."""
    return _modules(modules, pairs)


def _modules(modules: Sequence[str], pairs: Pairs) -> list[str]:
    by = patterns(pairs)
    last = {_last(name): _last(to) for name, to in pairs if "#" in name}
    return [_renamed(f"{m}.", by).rstrip(".") if "." in m else last.get(m, m) for m in modules]


def _last(name: str) -> str:
    return name.rstrip(".").split(".")[-1]


def _renamed(name: str, by: dict[str, str]) -> str:
    for pattern, to in by.items():
        name, count = re.subn(pattern, to, name)
        if count:
            return name
    return name
