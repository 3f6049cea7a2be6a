"""Films: texts written in several steps, with all their states, as `relgrad sample --steps` shows and keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad import registry
from relgrad.config import Stage
from relgrad.parts import build_policy, load_task
from relgrad.randomness import generator
from relgrad.rundir import RunDir
from relgrad.text.vocabulary import BLANK
from relgrad.types import Prompt, RelgradError
from relgrad.using import open_source

FILE = "films.jsonl"
SHOWN = 4
"""Held-out prompts that are filmed where none is given."""


def shoot(
    source: str, prompts: Sequence[str], n: int, overrides: Sequence[str], length: int | None = None, save: bool = False
) -> tuple[list[dict[str, Any]], Path | None]:
    """(`n` films per prompt, the file they were added to): of a run's trained policy or a recipe's untrained one.

    Prompts are the given ones, `length` masked positions and nothing else, or the first held-out ones. Raises RelgradError for
    a policy that cannot write in several steps, and for `save` without a run folder.
    """
    stage, start = open_source(source, overrides)
    require_steps(stage)
    if save and start is None:
        raise RelgradError(f"{source} is a recipe; films are kept in a run's folder. Leave --save out, or give a run")
    asked = _asked(source, stage, prompts, length)
    policy = build_policy(stage, start)
    step = int(start.name.removeprefix("step_")) if start is not None else 0
    films = [{"step": step, **film} for film in policy.film(asked, n, generator(stage.seed, "film"))]
    if not save or start is None:
        return films, None
    folder = RunDir(start.parent.parent)
    for film in films:
        folder.append(FILE, film)
    return films, folder.root / FILE


def overrides_of(steps: int | None, remask: str | None, schedule: str | None) -> list[str]:
    """The command line's options as overrides of the recipe; shares of one's own decide the number of steps too.

    Raises RelgradError for a schedule that is neither `linear` nor shares.
    """
    chosen: dict[str, Any] = {}
    if schedule == "linear":
        chosen = {"schedule": "linear", "masking_ratios": []}
    elif schedule is not None:
        try:
            shares = [float(share) for share in schedule.split(",")]
        except ValueError:
            raise RelgradError(f"--schedule {schedule}: give linear, or shares like 0.8,0.4,0.1") from None
        chosen = {"schedule": "custom", "masking_ratios": shares, "steps": len(shares) + 1}
    chosen |= {k: v for k, v in (("steps", steps), ("remask", remask)) if v is not None}
    return [f"policy.denoise.{key}={value}" for key, value in chosen.items()]


def require_steps(stage: Stage) -> None:
    """Raise RelgradError unless the stage's policy can write in several steps: its settings then say how (`denoise`)."""
    if "denoise" in registry.find("policies", stage.policy.kind).Settings.model_fields:
        return
    able = [k for k in registry.kinds("policies") if "denoise" in registry.find("policies", k).Settings.model_fields]
    raise RelgradError(
        f"policy kind {stage.policy.kind!r} does not write in several steps; kinds that do: {', '.join(able)}. Leave --steps, "
        "--remask, --schedule, --length, --animate and --save out"
    )


def _asked(source: str, stage: Stage, prompts: Sequence[str], length: int | None) -> Sequence[Prompt]:
    if prompts and length is not None:
        raise RelgradError("--length is for text from nothing and --prompt for text to fill in: give one of them")
    if length is not None:
        return [Prompt(BLANK * length)]
    task = load_task(stage)
    asked = [Prompt(task.ask(text), id=i) for i, text in enumerate(prompts)] or task.held_out[:SHOWN]
    if not asked:
        raise RelgradError(f"{source}: the task holds out no prompts to fill in; give your own with --prompt")
    return asked
