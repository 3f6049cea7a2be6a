"""What a run folder holds, read for the report. A missing or unreadable file is named, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir, read_lines, refuse_folder_of_runs
from relgrad.core.secrets import without_secrets
from relgrad.monitor.report.truth import shorten, written

STAGE_FILES = ("metrics.jsonl", "recipe.yaml", "environment.json", "evaluations.jsonl")
MAX_SAMPLE_STEPS = 40  # steps whose samples the page carries, spread evenly with the first and the last among them
MAX_SAMPLES_PER_STEP = 32
SAMPLE_KEYS = ("group", "reward", "parts", "advantage", "stop", "why")
MAX_FILMS = 24  # the newest; see films.jsonl in rundir.py
MAX_FRAMES = 64  # of one film, spread evenly with the first and the last among them
EMPTY_LINES = 3  # so many in a row are shown as they are; more are counted instead


@dataclass(frozen=True)
class StageFiles:
    """One stage folder. `missing` has one sentence for every file that is absent, empty or unreadable."""

    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    about: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    live_warnings: list[dict[str, Any]]
    samples: list[tuple[int, list[dict[str, Any]]]]
    sample_steps: int
    films: list[dict[str, Any]]
    audit: Mapping[str, Any]
    film_count: int
    cooled: Mapping[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The kind of stage, as the recipe names it; "grpo" where it does not say."""
        return str(self.recipe.get("stage") or "grpo")

    @property
    def title(self) -> str:
        """The stage's label: its folder's name without the number in front."""
        return re.sub(r"^\d+-(?=.)", "", self.name)

    @property
    def evaluated(self) -> bool:
        """Whether evaluations are to be expected: the recipe names rewards to judge by, or there is no recipe to tell."""
        evaluation = self.recipe.get("evaluation")
        judged_by = isinstance(evaluation, Mapping) and bool(evaluation.get("rewards"))
        return not self.recipe or bool(self.recipe.get("rewards")) or judged_by

    @property
    def sampled(self) -> bool:
        """Whether completions are to be expected: steps were rewarded, or there are no steps to tell."""
        return not self.metrics or any("reward" in record for record in self.metrics)

    @property
    def steps(self) -> int | None:
        """How many steps the stage is to take; None where nothing says it.

        What about.json has, where epochs are counted; or else the `steps` of the recipe's section that says how it is trained.
        """
        if isinstance(counted := self.about.get("steps"), int):
            return counted
        sections = (section for name, section in self.recipe.items() if name not in ("policy", "task"))
        counts = (section.get("steps") for section in sections if isinstance(section, Mapping))
        return next((count for count in counts if isinstance(count, int)), None)

    @property
    def two_parts(self) -> bool:
        """Whether the scores before and after are of the prompts that choices were made by."""
        return bool(self.evaluations) and all(record.get("name") == "validation" for record in self.evaluations)


def headline(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations that a stage's result is read from: of test prompts, or of those that serve for them."""
    for name in ("test", "validation"):
        if records := [record for record in evaluations if record.get("name") == name]:
            return records
    return list(evaluations)


def stage_folders(run: Path) -> list[Path]:
    """The stage folders of a run in the order they were begun; the folder itself where it is a stage (or empty).

    Raises RelgradError where `run` is not a folder, or a folder of runs.
    """
    if not run.is_dir():
        raise RelgradError(
            f"no run folder {str(run)!r}: give the folder of a stage (it has metrics.jsonl) or of a run (it has stages)"
        )
    if _is_stage(run):
        return [run]
    stages = [folder for folder in sorted(run.iterdir()) if folder.is_dir() and _is_stage(folder)]
    if not stages:
        refuse_folder_of_runs(run)
    return sorted(stages, key=_begun) or [run]


def read_stage(folder: Path) -> StageFiles:
    """Read one stage folder; see rundir.py for the files."""
    missing: list[str] = []
    run = RunDir(folder)
    recipe_text = _text(folder / "recipe.yaml", missing)
    steps = [step for step, _ in run.sample_files()]
    recipe = _recipe(recipe_text, missing)
    if (shown := without_secrets(recipe)) != recipe:
        recipe_text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    films = _films(run, missing)
    absent: list[str] = []
    stage = StageFiles(
        name=folder.name,
        recipe=recipe,
        recipe_text=recipe_text,
        environment=_object(folder / "environment.json", missing),
        about=_object(folder / "about.json", missing) if (folder / "about.json").exists() else {},
        metrics=_lines(run, "metrics.jsonl", missing),
        evaluations=_lines(run, "evaluations.jsonl", absent),
        live_warnings=_lines(run, "warnings.jsonl", missing) if (folder / "warnings.jsonl").exists() else [],
        samples=[(step, _step_samples(run, step, missing)) for step in spread(steps, MAX_SAMPLE_STEPS)],
        sample_steps=len(steps),
        films=[thinned(film) for film in films[-MAX_FILMS:]],
        film_count=len(films),
        cooled=run.cooled(),
        audit=_object(folder / "audit.json", missing) if (folder / "audit.json").exists() else {},
        missing=missing,
    )
    missing += absent if stage.evaluated else []
    missing += ["samples/ has no step files"] if stage.sampled and not steps else []
    return stage


def thinned(film: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a film, with at most MAX_FRAMES frames; `jumps` is of all of them.

    source  "uniform" or "mask" where the text began as noise or masks, "text" where it was given and had holes
    jumps   per step: its number, how many positions it wrote, and their mean probability (None where there is none)
    """
    frames, step, reward = film["frames"], film.get("step"), film.get("reward")
    kept = spread(list(range(len(frames))), MAX_FRAMES)
    parts = film.get("parts")
    return {
        "step": step if isinstance(step, int) else None,
        "prompt": squeezed(film["prompt"]),
        "source": film["source"] if film.get("source") in ("uniform", "mask") else "text",
        "final": shorten(film.get("final", frames[-1]["text"])),
        "scored": "reward" in film,
        "reward": reward if isinstance(reward, (int, float)) else None,
        "parts": parts if isinstance(parts, Mapping) else {},
        "why": str(film.get("why") or ""),
        "frames": [joined(frames[before + 1 : i + 1]) for before, i in zip([-1, *kept], kept, strict=False)],
        "hidden": [place for place in film.get("hidden") or () if _is_place(place)],
        "jumps": [_jumps(frame) for frame in frames if frame["step"]],
    }


def _is_place(place: Any) -> bool:
    """Whether it is a position and the text that was hidden there."""
    return isinstance(place, list) and len(place) == 2 and isinstance(place[0], int) and isinstance(place[1], str)


def joined(frames: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last of these frames, with what all of them filled and with the log-probability of all their steps."""
    last = dict(frames[-1])
    if len(frames) == 1:
        return last
    chance: dict[int, Any] = {}
    for frame in frames:
        chance |= zip(frame["filled"], frame.get("chance") or [None] * len(frame["filled"]), strict=False)
    last["filled"] = sorted(chance.keys() - set(last["masked"]))
    if "chance" in last:
        last["chance"] = [chance[position] for position in last["filled"]]
    if all(isinstance(f.get("logp"), float) for f in frames):
        last["logp"] = sum(f["logp"] for f in frames)
    return last


def _jumps(frame: Mapping[str, Any]) -> tuple[int, int, float | None]:
    sure = [frame["confidence"][i] for i in frame["filled"]]
    confidences = [c for c in sure if isinstance(c, (int, float))]
    return frame["step"], len(sure), sum(confidences) / len(confidences) if confidences else None


def spread(items: list[int], count: int) -> list[int]:
    """At most `count` of `items`, evenly spaced, first and last included."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def squeezed(text: Any) -> str:
    """A prompt to show: as `shorten` has it, and padding with empty lines only counted."""

    def counted(match: re.Match[str]) -> str:
        return f"\n⋯ {len(match[0]) - 1} empty lines ⋯\n"

    return re.sub(rf"\n{{{EMPTY_LINES + 2},}}", counted, shorten(text))


def _is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in STAGE_FILES)


def _begun(folder: Path) -> tuple[float, str]:
    try:
        time = next(read_lines(folder / "metrics.jsonl"), {}).get("time")
    except RelgradError:
        time = None
    return (float(time) if isinstance(time, (int, float)) else folder.stat().st_mtime, folder.name)


def _text(path: Path, missing: list[str]) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    missing.append(f"{path.name} is missing")
    return ""


def _recipe(text: str, missing: list[str]) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        data = None
    if isinstance(data, dict):
        return data
    missing.append("recipe.yaml cannot be read as a mapping of settings")
    return {}


def _object(path: Path, missing: list[str]) -> Mapping[str, Any]:
    text = _text(path, missing)
    try:
        data = json.loads(text or "{}")
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict):
        return data
    missing.append(f"{path.name} cannot be read as an object")
    return {}


def _lines(run: RunDir, name: str, missing: list[str]) -> list[dict[str, Any]]:
    if not (run.root / name).exists():
        missing.append(f"{name} is missing")
        return []
    try:
        records = run.lines(name)
    except RelgradError as error:
        missing.append(f"{name} cannot be read: {error}")
        return []
    if not records:
        missing.append(f"{name} is empty")
    return records


def _films(run: RunDir, missing: list[str]) -> list[dict[str, Any]]:
    """The lines of films.jsonl that a film can be played from; the others are named."""
    if not (run.root / "films.jsonl").exists():
        return []
    records = _lines(run, "films.jsonl", missing)
    films = [r for r in records if _plays(r)]
    if len(films) < len(records):
        missing.append(f"films.jsonl: {len(records) - len(films)} of {len(records)} lines have no frames to play")
    return films


def _plays(film: Mapping[str, Any]) -> bool:
    frames = film.get("frames")
    shape = {"step": int, "text": str, "masked": list, "filled": list, "confidence": list}
    return (
        isinstance(frames, list)
        and len(frames) > 0
        and "prompt" in film
        and all(isinstance(f, Mapping) and all(isinstance(f.get(k), kind) for k, kind in shape.items()) for f in frames)
        and all(isinstance(i, int) and i < len(f["confidence"]) for f in frames for i in f["filled"])
    )


def _step_samples(run: RunDir, step: int, missing: list[str]) -> list[dict[str, Any]]:
    name = run.samples_path(step).relative_to(run.root).as_posix()
    records = _lines(run, name, missing)[:MAX_SAMPLES_PER_STEP]
    return [
        {key: r.get(key) for key in SAMPLE_KEYS} | {"prompt": squeezed(r.get("prompt") or ""), **written(r)}
        for r in records
    ]
