"""What `relgrad sample` offers for a fill-in policy, and what a console shows of it. No torch: the command line reads this file."""

from __future__ import annotations

from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.options import SampleOption

MASK = "█"
"""How a masked position is written by people (text/vocabulary.py)."""
FIGURES = ("loss", "pg_loss", "kl_penalty", "mean_reward", "std_reward", "mean_advantage", "mean_kl", "mean_log_prob")
"""What the console shows of a step of this policy, beside the figures of every policy."""


def schedule(value: str) -> dict[str, Any]:
    """`linear`, or the shares that are masked again, which decide the number of steps too. Raises RelgradError for others."""
    if value == "linear":
        return {"denoise.schedule": "linear", "denoise.masking_ratios": []}
    try:
        shares = [float(share) for share in value.split(",")]
    except ValueError:
        raise RelgradError(f"--schedule {value}: give linear, or shares like 0.8,0.4,0.1") from None
    return {"denoise.schedule": "custom", "denoise.masking_ratios": shares, "denoise.steps": len(shares) + 1}


SAMPLE_OPTIONS = (
    SampleOption(
        "remask",
        "Fill-in: masked again by confidence, critic or random.",
        settings=lambda remask: {"denoise.remask": remask},
    ),
    SampleOption("schedule", "Fill-in: linear, or shares masked again: 0.8,0.4,0.1", settings=schedule),
    SampleOption("steps", "Write in so many steps.", number=True, settings=lambda steps: {"denoise.steps": steps}),
    SampleOption("length", "Fill-in: text from nothing, this long.", number=True, prompt=lambda length: MASK * length),
)
