"""Mixes of masks with a name, which a task of masked text takes in place of a list.

complex  the diffusion-GPT trainer's `composition_config` of that name: nine masks to train on and fourteen to judge by, each drawn
         equally often, from scattered positions to nearly everything; 80/10/10 as in BERT, but for spans
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Mix(NamedTuple):
    """Masks as a recipe writes them: those to train on, and those to judge by."""

    train: tuple[dict[str, Any], ...]
    held_out: tuple[dict[str, Any], ...]


def _random(most: float) -> dict[str, Any]:
    return {"type": "random", "max_masked_ratio": most, "bert": True}


def _sticky(ratio: float, alone: float, beside: float) -> dict[str, Any]:
    chances = {"p1_probability": alone, "p2_probability": beside}
    return {"type": "sticky", "target_masked_ratio": ratio, **chances, "bert": True}


MIXES: dict[str, Mix] = {
    "complex": Mix(
        train=(
            _sticky(0.4, 0.15, 0.3),
            _sticky(0.6, 0.1, 0.5),
            _random(0.5),
            {"type": "span", "spans_count": 20},
            _sticky(0.6, 0.3, 0.1),
            _sticky(0.6, 0.1, 0.5),
            _random(0.2),
            _sticky(0.55, 0.1, 0.6),
            _sticky(0.9, 0.1, 0.9),
        ),
        held_out=(
            _sticky(0.4, 0.15, 0.3),
            _sticky(0.6, 0.1, 0.5),
            _random(0.5),
            _sticky(0.6, 0.3, 0.1),
            _sticky(0.6, 0.1, 0.5),
            _random(0.2),
            _sticky(0.2, 0.3, 0.001),  # 0 there, with which a text may never be masked enough
            _sticky(0.4, 0.3, 0.001),
            _sticky(0.4, 0.15, 0.3),
            _sticky(0.55, 0.1, 0.6),
            _sticky(0.7, 0.2, 0.4),
            _sticky(0.8, 0.2, 0.4),
            _sticky(0.8, 0.1, 0.9),
            _sticky(0.9, 0.1, 0.9),
        ),
    )
}


def with_mixes(settings: Any) -> Any:
    """A task's settings with lists in place of names. A mix to train on brings its own to judge by, unless others are named.

    Raises ValueError for a name that no mix has.
    """
    if not isinstance(settings, dict):
        return settings
    named = {key: settings[key] for key in ("stages", "held_out_stages") if isinstance(settings.get(key), str)}
    for key, name in named.items():
        if name not in MIXES:
            raise ValueError(f"{key}={name!r} is no mix of masks; there is {', '.join(MIXES)}, or give a list of masks")
    filled = dict(settings)
    if "stages" in named:
        filled["stages"] = MIXES[named["stages"]].train
        if not settings.get("held_out_stages"):
            filled["held_out_stages"] = MIXES[named["stages"]].held_out
    if "held_out_stages" in named:
        filled["held_out_stages"] = MIXES[named["held_out_stages"]].held_out
    return filled
