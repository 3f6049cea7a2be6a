"""What `relgrad sample` offers for a ReFusion policy. No torch: the command line reads this file before any policy."""

from __future__ import annotations

from relgrad.core.options import SampleOption

SAMPLE_OPTIONS = (
    SampleOption(
        "steps",
        "Write in so many planning steps.",
        number=True,
        settings=lambda steps: {"evaluation_steps": steps, "native": "null"},
    ),
)
