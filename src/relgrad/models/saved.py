"""Where weights lie: a folder that holds them, or a stage's folder, whose newest checkpoint does."""

from __future__ import annotations

from pathlib import Path


def newest(source: Path) -> Path:
    """`source` itself, or its newest complete checkpoint where it is the folder of a stage (`runs/fill/1-sft`)."""
    found = [p.parent.parent for p in Path(source).glob("checkpoints/step_*/trainer/state.json")]
    return max(found, key=lambda p: int(p.name.removeprefix("step_")), default=Path(source))
