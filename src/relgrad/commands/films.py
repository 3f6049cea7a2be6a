"""Films: texts written in several steps, with all their states, as `relgrad sample --steps` shows and keeps them.

A policy can be filmed that has `film` (see protocols.Policy). With `FILM_STEPS` its class says which of its settings is the number
of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Prompt
from relgrad.evaluation.held_out import film
from relgrad.runs.build import build_policy, is_linked, load_task
from relgrad.runs.recipe import Stage
from relgrad.runs.use import open_source, rewards_of
from relgrad.text.vocabulary import BLANK

FILE = "films.jsonl"
SHOWN = 4
"""Held-out prompts that are filmed where none is given."""


@dataclass(frozen=True)
class Asked:
    """The command line's options; None where they are left out. All but `steps` are for masked text that is filled in."""

    steps: int | None = None
    remask: str | None = None
    schedule: str | None = None
    length: int | None = None


def shoot(
    source: str, prompts: Sequence[str], n: int, overrides: Sequence[str], asked: Asked, save: bool = False
) -> tuple[list[dict[str, Any]], Path | None]:
    """(`n` films per prompt, the file they were added to): of a run's trained policy or a recipe's untrained one.

    Prompts are the given ones, `asked.length` masked positions and nothing else, or the first held-out ones, whose films also say
    what their texts are worth. Raises RelgradError for a policy that cannot be filmed, and for `save` without a run folder.
    """
    options = overrides_of(open_source(source, overrides)[0], asked)
    stage, start = open_source(source, [*overrides, *options])
    if save and start is None:
        raise RelgradError(f"{source} is a recipe; films are kept in a run's folder. Leave --save out, or give a run")
    chosen, held_out = _prompts(source, stage, prompts, asked.length)
    rewards = rewards_of(stage, start) if held_out and (start is not None or not is_linked(stage)) else None
    policy = build_policy(stage, start)
    step = int(start.name.removeprefix("step_")) if start is not None else 0
    films = [{"step": step, **one} for one in film(policy, chosen, n, generator(stage.seed, "film"), rewards)]
    if not save or start is None:
        return films, None
    folder = RunDir(start.parent.parent)
    for one in films:
        folder.append(FILE, one)
    return films, folder.root / FILE


def overrides_of(stage: Stage, asked: Asked) -> list[str]:
    """The options as overrides of the recipe; shares of one's own decide the number of steps too.

    Raises RelgradError for a policy that cannot be filmed, for an option that it does not have, and for a schedule that is neither
    `linear` nor shares.
    """
    kind, steps = stage.policy.kind, _steps_setting(stage.policy.kind)
    fills_in = "denoise" in registry.find("policies", kind).Settings.model_fields
    foreign = [name for name in ("remask", "schedule", "length") if getattr(asked, name) is not None]
    if foreign and not fills_in:
        raise RelgradError(
            f"policy kind {kind!r} masks nothing again and fills in nothing: leave --{', --'.join(foreign)} out"
        )
    if asked.steps is not None and not steps:
        raise RelgradError(f"policy kind {kind!r} does not say which of its settings --steps is: set it itself")
    chosen: dict[str, Any] = _schedule(asked.schedule) if asked.schedule is not None else {}
    if asked.remask is not None:
        chosen["denoise.remask"] = asked.remask
    if asked.steps is not None:
        chosen[steps] = asked.steps
    return [f"policy.{key}={value}" for key, value in chosen.items()]


def _schedule(schedule: str) -> dict[str, Any]:
    if schedule == "linear":
        return {"denoise.schedule": "linear", "denoise.masking_ratios": []}
    try:
        shares = [float(share) for share in schedule.split(",")]
    except ValueError:
        raise RelgradError(f"--schedule {schedule}: give linear, or shares like 0.8,0.4,0.1") from None
    return {"denoise.schedule": "custom", "denoise.masking_ratios": shares, "denoise.steps": len(shares) + 1}


def _steps_setting(kind: str) -> str:
    """Which setting of a kind of policy is the number of steps, "" where it does not say. Raises RelgradError without `film`."""
    filmed = _filmed(kind)
    if filmed is None:
        able = [k for k in registry.kinds("policies") if _filmed(k) is not None]
        raise RelgradError(
            f"policy kind {kind!r} does not write in several steps; kinds that do: {', '.join(able)}. Leave --steps, --remask, "
            "--schedule, --length, --animate and --save out"
        )
    return str(getattr(filmed, "FILM_STEPS", ""))


def _filmed(kind: str) -> type | None:
    """The class in a kind's module that has `film`; asked before any weights are loaded."""
    found = vars(registry.find("policies", kind)).values()
    return next((c for c in found if isinstance(c, type) and callable(getattr(c, "film", None))), None)


def _prompts(source: str, stage: Stage, prompts: Sequence[str], length: int | None) -> tuple[Sequence[Prompt], bool]:
    """(the prompts, whether they are held-out ones)."""
    if prompts and length is not None:
        raise RelgradError("--length is for text from nothing and --prompt for text to fill in: give one of them")
    if length is not None:
        return [Prompt(BLANK * length)], False
    task = load_task(stage)
    if prompts:
        return [Prompt(task.ask(text), id=i) for i, text in enumerate(prompts)], False
    if not task.held_out:
        raise RelgradError(f"{source}: the task holds out no prompts to write for; give your own with --prompt")
    return task.held_out[:SHOWN], True
