"""The run folder: `runs/<name>/<stage>/`, plain files that outlive the process. Standard library only.

    recipe.yaml              the resolved recipe of this stage; the run can be repeated from it
    environment.json         versions, hardware, git commit, command line
    about.json               what is trained, in words
    metrics.jsonl            one object per optimizer step: {"step": 3, "time": 1763…, "reward": …, …}; NaN is null
    samples/step_000003.jsonl  one object per completion: step, group, prompt, completion, reward, parts, advantage, stop, why,
                             truth and holes where they are known
    evaluations.jsonl        one object per evaluation: step, name, score, low, high (95 % interval over `over`), n, …
    cooled.json              the untrained start, cooled to where the trained policy went: one evaluation, on request
    warnings.jsonl           named warnings as they were printed: step, name, evidence, advice
    training.log             what the stage told people, with times; appended to when the run goes on
    films.jsonl              one object per text that was written in several steps: step, prompt, frames, final, ids
    audit.json               what a judge stage's audit found
    hand_off.json            the weights that the stage ended with, by their hash, for the stages that start from it
    fingerprints.json        the files that the recipe names, as they were; see named_files.py
    checkpoints/step_N/      see checkpoint.py
    report.html              see report/

Beside the stages, in `runs/<name>/`: lock.json while the run is written (see lock.py), and the report of them all.

No value that a recipe names as `env:NAME` is written into any of them (secrets.py).
Whole files are written to a neighbour and renamed; lines are appended and flushed. After a kill a torn last line may
remain: readers skip it, and `rewind` cuts everything after the step that training resumes from. Metrics and evaluations are what
a run goes on by: damage in them is an error. What is only for people is set aside where it is damaged, and the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.secrets import hide, hide_in

HALVES = "backslashreplace"
"""Half a character, which UTF-8 does not have, is written as the escape that JSON has for it: no text can end a run."""
RECORDS = ("metrics.jsonl", "evaluations.jsonl")
"""Lines by step that a run goes on by."""
FOR_PEOPLE = ("warnings.jsonl", "films.jsonl")
"""Lines by step that only people read."""
COOLED = "cooled.json"


def fault_of_name(name: str) -> str | None:
    """Why a run cannot have this name, which its folder has too; None where it can."""
    if name.strip() in ("", ".", "..") or any(character in name for character in "/\\\0"):
        return f"the run's folder in `out` is called so: give a name without / and \\ (received {name!r})"
    return None


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(neighbour, "w", encoding="utf-8", errors=HALVES) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` for JSON; non-finite floats become null."""
    write_atomic(path, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, so that the file is JSON for every reader."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; nothing where it is absent; a torn last line is skipped.

    Raises RelgradError for a file that cannot be read, naming the line.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise RelgradError(f"{path} is a folder, and a file belongs there: move it away")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise RelgradError(f"{path}, line {number} cannot be read: {error}") from None
            if not isinstance(record, dict):
                raise RelgradError(f"{path}, line {number}: an object belongs there, and it is {type(record).__name__}")
            yield record


def cut_torn_line(path: Path) -> None:
    """Remove what stands behind the last line break, so that the file can be appended to; nothing where there is no file."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


def lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The objects of a JSONL file up to a step. Raises RelgradError for a file that cannot be read, or a line without a step."""
    records = list(read_lines(path))
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("step"), int):
            raise RelgradError(f"{path}, line {number} has no step: {str(record)[:80]}")
    return [record for record in records if record["step"] <= step]


def stages_in(run: Path) -> list[Path]:
    """The folders of a run's stages, in their order: 2-grpo before 10-grpo."""
    folders = [path.parent for path in run.glob("*/recipe.yaml")]

    def place(folder: Path) -> tuple[int, str]:
        number = folder.name.partition("-")[0]
        return (int(number) if number.isdecimal() else 0, folder.name)

    return sorted(folders, key=place)


def refuse_folder_of_runs(folder: Path) -> None:
    """Raise RelgradError where there are runs in the folder, and no stage of its own; it names them."""
    if any(folder.glob("recipe.yaml")) or any(folder.glob("*/recipe.yaml")):
        return
    runs = sorted({path.parents[1] for path in folder.glob("*/*/recipe.yaml")})
    if runs:
        others = f" and {len(runs) - 10} others" if len(runs) > 10 else ""
        raise RelgradError(
            f"{folder} is a folder of runs, not a run: give one of those in it, {', '.join(map(str, runs[:10]))}{others}"
        )


def require_writable(folder: Path) -> None:
    """Raise RelgradError where no folder can be made or written at this path. Changes nothing."""
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
        raise RelgradError(f"{folder} cannot be written: {error}. Give it another place") from None
    if not nearest.is_dir():
        raise RelgradError(f"{folder} cannot be written: {nearest} is a file. Give it another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RelgradError(f"{folder} cannot be written: no permission for {nearest}. Give it another place")


def require_writable_file(file: Path) -> None:
    """Raise RelgradError where no file can be made or written at this path. Changes nothing."""
    require_writable(file.parent)
    if file.is_dir():
        raise RelgradError(f"{file} cannot be written: it is a folder. Name a file")


def step_of_samples(path: Path) -> int | None:
    """The step that a file of samples is named by; None for a file of another name."""
    number = path.stem.removeprefix("step_")
    return int(number) if number.isdecimal() else None


class RunDir:
    """One stage's folder. Creating the object creates nothing; the first write does.

    writes  False where another process writes the same folder: then all that would change it does nothing
    """

    def __init__(self, root: str | Path, *, writes: bool = True) -> None:
        self.root, self.writes = Path(root), writes

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add one line to `name` (for example "metrics.jsonl") and flush it to the system."""
        if not self.writes:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / name, "a", encoding="utf-8", errors=HALVES) as file:
            file.write(json.dumps(hide_in(finite(record)), ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file."""
        if self.writes:
            write_atomic(self.root / name, hide(text))

    def write_json(self, name: str, value: Any) -> None:
        """Write a whole file; non-finite floats become null."""
        if self.writes:
            write_json(self.root / name, hide_in(value))

    def write_samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """Write all completions of one step."""
        lines = "".join(json.dumps(hide_in(finite(r)), ensure_ascii=False) + "\n" for r in records)
        self.write_text(str(self.samples_path(step).relative_to(self.root)), lines)

    def samples_path(self, step: int) -> Path:
        return self.root / "samples" / f"step_{step:06d}.jsonl"

    def lines(self, name: str) -> list[dict[str, Any]]:
        """All objects of a JSONL file in the folder."""
        return list(read_lines(self.root / name))

    def sample_files(self) -> list[tuple[int, Path]]:
        """(step, file) of all samples, in the order of steps."""
        named = ((step_of_samples(path), path) for path in (self.root / "samples").glob("step_*.jsonl"))
        return sorted((step, path) for step, path in named if step is not None)

    def samples(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(step, completions) in the order of steps."""
        for step, path in self.sample_files():
            yield step, list(read_lines(path))

    def rewind(self, step: int) -> list[str]:
        """Forget what was written after `step` or only in part, as if the process had stopped right there.

        What is only for people and cannot be read, or stands in the way, is set aside; gives a sentence for each. Raises
        RelgradError where metrics or evaluations cannot be read.
        """
        if not self.writes:
            return []
        for name in RECORDS:
            self._rewind_lines(name, step)
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise RelgradError(f"{self.checkpoints} is a file, and a folder belongs there: move it away")
        notes = [
            self.set_aside(name) for name in ("environment.json", "report.html", COOLED) if (self.root / name).is_dir()
        ]
        for name in FOR_PEOPLE:
            try:
                self._rewind_lines(name, step)
            except RelgradError as error:
                notes.append(f"{error}; {self.set_aside(name)}")
        if (self.root / COOLED).is_file() and self.cooled().get("step") not in range(step + 1):
            (self.root / COOLED).unlink()
        if (self.root / "samples").exists() and not (self.root / "samples").is_dir():
            notes.append(self.set_aside("samples"))
        for number, path in self.sample_files():
            if number > step and path.is_dir():
                notes.append(self.set_aside(f"samples/{path.name}"))
            elif number > step:
                path.unlink()
        for unfinished in (*self.root.glob(".*.tmp"), *self.root.glob("samples/.*.tmp")):
            unfinished.unlink()
        return notes

    def _rewind_lines(self, name: str, step: int) -> None:
        path = self.root / name
        if path.exists():
            kept = lines_until(path, step)
            write_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))

    def set_aside(self, name: str) -> str:
        """Give a damaged file, or a folder in the place of a file, another name; a sentence that says so."""
        path = self.root / name
        free = (path.with_name(f"{path.name}.damaged{n or ''}") for n in range(1000))
        aside = next(other for other in free if not other.exists())
        path.rename(aside)
        return f"{name} was damaged and is kept as {aside.name}"

    def cooled(self) -> dict[str, Any]:
        """The evaluation of the cooled start; empty where there is none, or none that can be read."""
        try:
            record = json.loads((self.root / COOLED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def clear(self) -> None:
        """Remove the folder with everything in it."""
        if self.writes:
            shutil.rmtree(self.root, ignore_errors=True)
