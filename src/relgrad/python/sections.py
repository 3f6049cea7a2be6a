"""What a script hands over, as the sections of a recipe: a model's name, rows, functions.

Rows are written into the run's folder, so that the recipe beside them repeats the run by itself. A function is named by where it
is imported from. What has no such place (a lambda, a function inside of another, an object) is kept by this process (core/live.py),
and the recipe names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relgrad.core import live
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir
from relgrad.tasks import Task

PARTS = {"train": "path", "validation": "held_out_path", "test": "test_path"}
"""Parts of a task that rows are given for, and the setting of `kind: file` that names their file."""


class Sections:
    """The recipe of one run: its folder, and whether this process writes there."""

    def __init__(self, run: Path, writes: bool) -> None:
        self.run, self.writes = run, writes
        self.names: list[str] = []

    def recipe(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Plain data in place of values that a script gave; those inside of its stages too. Raises RelgradError."""
        recipe = dict(given)
        for name, section in {"policy": self.policy, "task": self.task, "rewards": self.rewards}.items():
            if name in recipe:
                recipe[name] = section(recipe[name])
        if isinstance(recipe.get("evaluation"), Mapping):
            recipe["evaluation"] = self.recipe(recipe["evaluation"])
        if isinstance(recipe.get("stages"), (list, tuple)):
            recipe["stages"] = [self.recipe(stage) for stage in recipe["stages"]]
        return recipe

    def policy(self, policy: str | Path | Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's section as it is; the name, or folder, of an autoregressive model as such a section."""
        if isinstance(policy, (str, Path)):
            return {"kind": "autoregressive", "model": str(policy)}
        if not isinstance(policy, Mapping):
            raise RelgradError(
                f"policy: received {_shown(policy)}; give the name or folder of a language model ('Qwen/Qwen3-0.6B'), or a section "
                "such as {'kind': 'autoregressive', 'model': 'tiny'}"
            )
        return dict(policy)

    def rewards(self, rewards: Any) -> list[dict[str, Any]]:
        """One section per reward: a section as it is, or one for a function. A single reward needs no list."""
        alone = callable(rewards) or isinstance(rewards, Mapping)
        if not alone and (isinstance(rewards, (str, bytes)) or not isinstance(rewards, Iterable)):
            raise RelgradError(
                f"rewards: received {_shown(rewards)}; give a function, a section such as {{'kind': 'exact'}}, or a list of them"
            )
        return [self._reward(reward) for reward in ([rewards] if alone else rewards)]

    def _reward(self, reward: Any) -> dict[str, Any]:
        if isinstance(reward, Mapping):
            function = reward.get("function")
            return {**reward, **self._reward(function)} if callable(function) else dict(reward)
        if not callable(reward):
            raise RelgradError(
                f"rewards: received {_shown(reward)}; give functions, or sections such as {{'kind': 'exact', 'weight': 0.5}}"
            )
        place = live.importable(reward)
        if place is not None:
            return {"kind": "function", "function": place}
        return {"kind": "python", "function": self._keep(live.place_of(reward), reward), "run": str(self.run)}

    def task(self, task: Any) -> dict[str, Any]:
        """A section as it is; a section for a Task; or rows, which are written into the run's folder.

        Rows are a list of mappings, a datasets.Dataset, or anything that yields mappings. `{"train": rows, "test": rows, ...}`
        gives several parts, and beside them any setting of `kind: file` (`template`, `system`, `held_out_fraction` …). Raises
        RelgradError for what is none of these, and for rows that no JSON file can hold.
        """
        if isinstance(task, Task):
            name = self._keep(f"{live.script().name}:{task.name}", task)
            return {"kind": "python", "task": name, "run": str(self.run)}
        if isinstance(task, Mapping) and "kind" in task:
            return dict(task)
        parts = dict(task) if isinstance(task, Mapping) else {"train": task}
        if "train" not in parts:
            raise RelgradError(
                f"task: received a mapping with {', '.join(map(repr, parts)) or 'nothing'}; it has a `kind` of task, or `train` "
                "rows"
            )
        section: dict[str, Any] = {"kind": "file"}
        for part, setting in PARTS.items():
            if part in parts:
                section[setting] = str(self._write(part, _lines(parts.pop(part), part)))
        return section | parts

    def _keep(self, place: str, thing: Any) -> str:
        """Keep an object for the run, under a name that no other object of it has."""
        self.names.append(place)
        name = place if self.names.count(place) == 1 else f"{place}#{self.names.count(place)}"
        live.keep(str(self.run), name, thing)
        return name

    def _write(self, part: str, lines: str) -> Path:
        """The file of these rows, called after what is in it: other rows are another task, and those of a begun run stay."""
        digest = hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()[:12]
        data = RunDir(self.run / "data", writes=self.writes)
        if not (data.root / f"{part}-{digest}.jsonl").is_file():
            data.write_text(f"{part}-{digest}.jsonl", lines)
        return data.root / f"{part}-{digest}.jsonl"


def _lines(rows: Iterable[Mapping[str, Any]], part: str) -> str:
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise RelgradError(
            f"task: {part} is {type(rows).__name__}; give a list of rows such as {{'prompt': ..., 'answer': ...}}"
        )
    lines = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise RelgradError(
                f"task: row {number} to {part} is {type(row).__name__}; a row is a mapping, column to value"
            )
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            column = next(name for name, value in row.items() if not _is_plain(value))
            raise RelgradError(
                f"task: row {number} to {part}: column {column!r} is {type(row[column]).__name__}, which JSON cannot hold "
                f"({error}); make it text, numbers or lists of them, or build a relgrad.tasks.Task"
            ) from None
    return "".join(lines)


def _shown(value: Any) -> str:
    """A value as an error shows it."""
    return f"{value!r:.60} ({type(value).__name__})"


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
