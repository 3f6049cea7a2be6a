"""The run folder: `runs/<name>/<stage>/`, plain files that outlive the process. Standard library only.

    recipe.yaml              the resolved recipe of this stage; the run can be repeated from it
    environment.json         versions, hardware, git commit, command line
    metrics.jsonl            one object per optimizer step: {"step": 3, "time": 1763…, "reward": …, …}; NaN is null
    samples/step_000003.jsonl  one object per completion: step, group, prompt, completion, reward, parts, advantage, stop, why
    evaluations.jsonl        one object per evaluation: step, name, score, low, high (95 % interval), n, per_prompt, samples
    warnings.jsonl           named warnings as they were printed: step, name, evidence, advice
    films.jsonl              one object per text that was written in several steps: step, prompt, frames, final, ids
    audit.json               what a judge stage's audit found
    checkpoints/step_N/      see checkpoint.py
    report.html              see report/

Whole files are written to a neighbour and renamed; lines are appended and flushed. After a kill a torn last line may
remain: readers skip it, and `rewind` cuts everything after the step that training resumes from.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LINES_BY_STEP = ("metrics.jsonl", "evaluations.jsonl", "warnings.jsonl", "films.jsonl")


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(neighbour, "w", encoding="utf-8") as file:
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
    """The objects of a JSONL file; nothing where it is absent; a torn last line is skipped."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


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
        with open(self.root / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file."""
        if self.writes:
            write_atomic(self.root / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a whole file; non-finite floats become null."""
        if self.writes:
            write_json(self.root / name, value)

    def write_samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """Write all completions of one step."""
        lines = "".join(json.dumps(finite(r), ensure_ascii=False) + "\n" for r in records)
        self.write_text(str(self.samples_path(step).relative_to(self.root)), lines)

    def samples_path(self, step: int) -> Path:
        return self.root / "samples" / f"step_{step:06d}.jsonl"

    def lines(self, name: str) -> list[dict[str, Any]]:
        """All objects of a JSONL file in the folder."""
        return list(read_lines(self.root / name))

    def samples(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(step, completions) in the order of steps."""
        for path in sorted((self.root / "samples").glob("step_*.jsonl")):
            yield int(path.stem.removeprefix("step_")), list(read_lines(path))

    def rewind(self, step: int) -> None:
        """Forget what was written after `step` or only in part, as if the process had stopped right there."""
        if not self.writes:
            return
        for name in LINES_BY_STEP:
            path = self.root / name
            if path.exists():
                kept = [r for r in read_lines(path) if r["step"] <= step]
                write_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
        for path in (self.root / "samples").glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        for unfinished in (*self.root.glob(".*.tmp"), *self.root.glob("samples/.*.tmp")):
            unfinished.unlink()

    def clear(self) -> None:
        """Remove the folder with everything in it."""
        if self.writes:
            shutil.rmtree(self.root, ignore_errors=True)
