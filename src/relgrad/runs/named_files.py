"""The files that a recipe names: which they are, whether they are there, and whether they are those that a run began with.

    fingerprints.json   {"files": {"data/rows.jsonl": {"setting": "task.path", "named": "data/rows.jsonl", "size": …, "sha256": …}},
                         "accepted": [{"file": "data/rows.jsonl", "change": "has changed (as long as before)"}]}

A setting says by its annotation that it names files (core/settings.py: NamesFiles, NamesCode), in whatever section of the stage it
stands; kinds that are Python files of the user's count too. A folder counts with every file in it; the folder of a stage, with
those of its newest checkpoint. Beyond 64 MiB a fingerprint is of parts of the file (core/checksums.py). Names on the hub, installed
packages and what a Python file imports have none.
"""

from __future__ import annotations

import glob
import json
import logging
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import relgrad
from relgrad.core import checksums, registry
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir
from relgrad.core.secrets import is_reference
from relgrad.core.settings import Component, NamesCode, NamesFiles, written_settings
from relgrad.networks.weights.folder import newest
from relgrad.runs.starts import folder_started_from
from relgrad.stages.kind import kind_of
from relgrad.stages.settings import RewardedStage, Stage
from relgrad.training import checkpoint

FILE = "fingerprints.json"
LINK = "stage:"
SUFFIXES = {
    ".ckpt", ".csv", ".gguf", ".json", ".jsonl", ".ndjson", ".parquet", ".pt", ".pth", ".safetensors", ".txt",
}  # fmt: skip
"""Endings by which a value that could be a name on the hub is taken for a path."""
Fingerprints = dict[str, dict[str, Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A file or folder that a setting names, or the files that a pattern of names stands for.

    needed   whether a run is refused where it is not there
    within   of a folder, the files that count; empty: all
    """

    setting: str
    path: Path
    needed: bool = True
    within: tuple[str, ...] = ()
    pattern: bool = False

    def files(self) -> dict[str, Path]:
        """What is in it, by the name that messages call it; empty where there is nothing."""
        if self.pattern:
            return {
                name: Path(name) for name in sorted(glob.glob(str(self.path), recursive=True)) if Path(name).is_file()
            }
        if self.path.is_file():
            return {str(self.path): self.path}
        if self.within:
            return {str(self.path / name): self.path / name for name in self.within if (self.path / name).is_file()}
        folder = newest(self.path)
        inside = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*")) if path.is_file()}
        counted = (p for p, parts in inside.items() if parts[0] != "trainer" and not any(x[0] == "." for x in parts))
        return {str(path): path for path in counted}


# ---------------------------------------------------------------------- which they are


def named_files(stage: Stage) -> list[Named]:
    """The files and folders that a stage's settings name."""
    sections: list[tuple[str, Component, str]] = [("policy", stage.policy, "policies"), ("task", stage.task, "tasks")]
    values = dict(stage)
    components = kind_of(stage).components
    sections += [(name, values[name], room) for name, room in components.items() if values[name] is not None]
    if isinstance(stage, RewardedStage):
        sections += [(f"rewards.{n}", reward, "rewards") for n, reward in enumerate(stage.rewards)]
    sections += [(f"evaluation.rewards.{n}", reward, "rewards") for n, reward in enumerate(stage.evaluation.rewards)]
    if stage.evaluation.suite is not None and stage.evaluation.suite.passing is not None:
        sections.append(("evaluation.suite.passing", stage.evaluation.suite.passing, "rewards"))
    named = [*_code("stage", stage.stage), *_start(stage)]
    for where, section in values.items():
        if isinstance(section, BaseModel):
            named += _marked(section, where)
    for where, component, room in sections:
        settings = written_settings(component, registry.find(room, component.kind).Settings, where)
        named += [*_code(f"{where}.kind", component.kind), *_marked(settings, where)]
    return list({(each.path, each.within): each for each in reversed(named)}.values())[::-1]


def _start(stage: Stage) -> Iterator[Named]:
    """The folder of another run that the stage starts from."""
    if (folder := folder_started_from(stage)) is not None:
        yield Named("from", folder)


def _marked(settings: BaseModel, where: str) -> Iterator[Named]:
    """What the annotated settings of a section name, and of the sections in it."""
    for name, field in type(settings).model_fields.items():
        content, setting = dict(settings)[name], f"{where}.{name}"
        if isinstance(content, dict):
            for key, value in content.items():
                if isinstance(value, BaseModel):
                    yield from _marked(value, f"{setting}.{key}")
        for value in content if isinstance(content, tuple) else (content,):
            if isinstance(value, BaseModel):
                yield from _marked(value, setting)
            for mark in field.metadata:
                if isinstance(mark, NamesCode) and isinstance(value, str):
                    yield from _code(setting, value)
                elif isinstance(mark, NamesFiles) and isinstance(value, (str, Path)):
                    yield from _file(setting, value, mark)


def _file(setting: str, value: str | Path, mark: NamesFiles) -> Iterator[Named]:
    if str(value) in mark.besides or str(value).startswith(LINK) or is_reference(value):
        return
    if mark.patterns:
        if not str(value).startswith("{relgrad}"):
            yield Named(setting, Path(value), needed=False, pattern=True)
        return
    path = Path(value).expanduser()
    like_a_path = str(value).startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES
    yield Named(setting, path, not mark.within and (like_a_path or not mark.or_hub), mark.within)


def _code(setting: str, value: str) -> Iterator[Named]:
    """The user's own Python file that is named by its path, or as a module; `value` may end with :name."""
    place = value.rpartition(":")[0] or value
    if place.endswith(".py"):
        yield Named(setting, Path(place))
    elif "." in place or ":" in value:
        file = registry.file_of(place)
        installed = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(Path(relgrad.__file__).parent))
        if file is not None and not str(file).startswith(installed):
            yield Named(setting, file)


# ---------------------------------------------------------------------- whether they are there, and the same


def require_there(stage: Stage) -> None:
    """Raise RelgradError for a file that a stage's settings name and that is not there."""
    for named in named_files(stage):
        if named.needed and not named.path.exists():
            raise RelgradError(
                f"{named.setting}: no file or folder {str(named.path)!r} (working directory {Path.cwd()})"
            )


def require_undamaged(stage: Stage) -> None:
    """Raise RelgradError for a checkpoint of another run that a stage's settings name and that is damaged."""
    for named in named_files(stage):
        source = newest(named.path)
        if (source / checkpoint.SUMS).exists():
            checkpoint.require_undamaged(source, trainer=False)


def fingerprints(stage: Stage) -> Fingerprints:
    """Of every file that a stage's settings name. Raises RelgradError for one that cannot be read."""
    return _fingerprints(named_files(stage))


def _fingerprints(everything: Sequence[Named]) -> Fingerprints:
    prints: Fingerprints = {}
    for named in everything:
        for name, path in named.files().items():
            try:
                checksum = checksums.of_file(path, pieces=True)
            except OSError as error:
                raise RelgradError(f"{named.setting}: {path} cannot be read: {error}") from None
            prints[name] = {"setting": named.setting, "named": str(named.path), **checksum}
    return prints


def write(folder: RunDir, stage: Stage, accepted: Mapping[str, str] | None = None) -> None:
    """Keep the fingerprints of a stage's files in its folder, and which changes of them were accepted."""
    before = _read(folder.root).get("accepted", []) if accepted is not None else []
    added = [{"file": name, "change": change} for name, change in (accepted or {}).items()]
    folder.write_json(FILE, {"files": fingerprints(stage), "accepted": [*before, *added]})


def changes(folder: Path, stage: Stage) -> dict[str, str]:
    """{file: what became of it} of those that a stage's settings name and that are not as the run in this folder began with.

    Nothing where the folder holds no fingerprints. Raises RelgradError where these cannot be read.
    """
    if not (folder / FILE).exists():
        return {}
    everything = named_files(stage)
    before, now = _read(folder)["files"], _fingerprints(everything)
    named_before, named_now = {old["named"] for old in before.values()}, {str(named.path) for named in everything}
    changed = {}
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old is None and new is not None and new["named"] in named_before:
            changed[name] = "is new"
        elif old is not None and new is None and old["named"] in named_now:
            changed[name] = "is gone"
        elif old is not None and new is not None and old["sha256"] != new["sha256"]:
            as_long = old["size"] == new["size"]
            sizes = "as long as before" if as_long else f"{old['size']:,} bytes then, {new['size']:,} now"
            changed[name] = f"has changed ({sizes})"
    return changed


def require_unchanged(folder: Path, stage: Stage) -> None:
    """Raise RelgradError, naming the files, where the run in this folder began with other ones."""
    if changed := changes(folder, stage):
        raise RelgradError(
            f"{folder / FILE}: since this run began, {_sentence(changed)}. What was kept to judge by may be trained on now. Bring "
            "back what it began with, or give a new run another name (name=...), or go on all the same with --accept-changes"
        )


def warn_of_changes(folder: Path, stage: Stage) -> None:
    """Say so where files that a stage's settings name are not those that the run in this folder was trained with.

    Also where that cannot be told: reading is always allowed.
    """
    try:
        changed = changes(folder, stage)
    except RelgradError as error:
        logger.warning("%s", error)
        return
    if changed:
        logger.warning(
            "%s: since this run began, %s; what is judged by now may have been trained on",
            folder / FILE,
            _sentence(changed),
        )


def _sentence(changed: Mapping[str, str]) -> str:
    shown = [f"{name} {change}" for name, change in list(changed.items())[:5]]
    return "; ".join(shown) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"setting": str, "named": str, "sha256": str, "size": int}
        if all(isinstance(each[key], kind) for each in content["files"].values() for key, kind in kinds.items()):
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise RelgradError(f"{path} cannot be read: bring it back from a copy, or delete it, and changes are not noticed")
