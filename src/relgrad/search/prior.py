"""Which edits of a workflow are likely to help: a prior learnt from earlier searches, by type of problems and kind of edit.

A kind of edit is what it adds and takes away, `+verify +program` say. Its gain is the mean of child less parent, over all edits of
the kind that earlier searches executed, shrunk by its noise: sum / (count + DOUBT), the posterior mean where true gains are normal
around 0. DOUBT is sigma^2 / tau^2, the variance of one measured gain over that of true ones. A new workflow is executed twice, and
an execution right with probability p has the variance p (1 - p): at p = 0.7, sigma^2 is 0.7 * 0.3 / 2, about 0.1. With tau about
SHARPNESS, 0.022, that makes 200. So one lucky edit, with a gain of 1, has the factor exp(1 / 201 / SHARPNESS) = 1.3.

The prior of an edit is that of the grammar times exp(gain / SHARPNESS), part of it left as it was:

    P(edit)  =  mix * grammar(edit) + (1 - mix) * grammar(edit) exp(gain / SHARPNESS) / sum over all edits

The file is JSON: {"version", "runs", "edits", "gains": {types: {kind of edit: [gain, count]}}}; types are joined by +, and "" is
all of them together, for types that no search had.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import read_lines, write_json
from relgrad.environments.workflows.language import NoWorkflow, Step, parse

VERSION = 1
DOUBT = 200.0
SHARPNESS = 0.02
MIX = 0.1


@dataclass(frozen=True)
class Prior:
    """Gains by types of problems and kind of edit: the mean and how many edits it is of."""

    gains: Mapping[str, Mapping[str, tuple[float, int]]]

    def weighted(self, parent: Step, chances: Mapping[Step, float], types: str) -> dict[Step, float]:
        """The probability of every edit of a workflow, from the grammar's own; they add up to what those do."""
        table = self.gains.get(types) or self.gains.get("", {})
        weights = {
            child: chance * math.exp(table.get(kind_of_edit(parent, child), (0.0, 0))[0] / SHARPNESS)
            for child, chance in chances.items()
        }
        scale = math.fsum(chances.values()) / math.fsum(weights.values()) if weights else 1.0
        return {child: MIX * chances[child] + (1 - MIX) * scale * weight for child, weight in weights.items()}


def kind_of_edit(parent: Step, child: Step) -> str:
    """What an edit adds and takes away: operators, with the prompt where it is no text of its own; "order" where nothing."""
    before, after = Counter(_parts(parent)), Counter(_parts(child))
    changes = [f"+{name}" * (count > 1) + f"+{name}" for name, count in sorted((after - before).items())]
    changes += [f"-{name}" * (count > 1) + f"-{name}" for name, count in sorted((before - after).items())]
    return " ".join(changes) or "order"


def _parts(step: Step) -> Iterable[str]:
    yield f"{step.operator} {step.prompt}" if step.prompt.isidentifier() else step.operator
    for inner in step.inputs:
        yield from _parts(inner)


def types_of(types: Iterable[str]) -> str:
    """The name of several types of problems together."""
    return "+".join(sorted(set(types)))


def learn(folders: Sequence[Path]) -> dict[str, Any]:
    """The record of a prior from the trajectories of finished or running searches. Raises RelgradError where there is none."""
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for types, kind, gain in _edits(folder):
            for key in {types, ""}:
                sums[key][kind].append(gain)
    count = sum(map(len, sums[""].values()))
    if not count:
        raise RelgradError("no edit with a score in these searches: let them run longer, or name others")
    gains = {
        types: {kind: [math.fsum(g) / (len(g) + DOUBT), len(g)] for kind, g in sorted(kinds.items())}
        for types, kinds in sorted(sums.items())
    }
    return {"version": VERSION, "runs": [str(folder) for folder in folders], "edits": count, "gains": gains}


def _edits(folder: Path) -> Iterable[tuple[str, str, float]]:
    """(types of problems, kind of edit, gain) of every edit that was executed, its parent too."""
    path = folder / "trajectories.jsonl"
    if not path.is_file():
        raise RelgradError(f"{folder} holds no search: there is no {path.name} (working directory {Path.cwd()})")
    scores: dict[tuple[str, int], float] = {}
    for number, line in enumerate(read_lines(path), 1):
        if "rejected" in line:
            continue
        try:
            scope, score = line["scope"], math.nan if line["score"] is None else float(line["score"])
            scores[scope, line["node"]] = score
            before = math.nan if line["parent"] is None else scores[scope, line["parent"]]
            if math.isfinite(score - before):
                types = types_of(line["types"])
                yield types, kind_of_edit(parse(line["from"]), parse(line["workflow"])), score - before
        except (KeyError, TypeError, ValueError, NoWorkflow) as error:
            raise RelgradError(f"{path}, line {number} is no edit ({error!r}); search anew with --fresh") from None


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a prior that `learn` gave."""
    write_json(path, record)


def read(path: Path) -> Prior:
    """A prior from its file. Raises RelgradError for a file that holds none."""
    if not path.is_file():
        raise RelgradError(
            f"search.edit_prior: no file {str(path)!r} (working directory {Path.cwd()}); `relgrad workflow prior RUN... --out "
            "FILE` makes one"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != VERSION:
            raise RelgradError(
                f"search.edit_prior: {path} has version {record['version']!r}; {VERSION} is read. Learn it anew"
            )
        gains = {
            str(types): {str(kind): (_finite(gain), int(count)) for kind, (gain, count) in kinds.items()}
            for types, kinds in record["gains"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RelgradError(
            f"search.edit_prior: {path} is no prior ({error!r}); `relgrad workflow prior RUN... --out FILE` makes one"
        ) from None
    return Prior(gains)


def _finite(gain: Any) -> float:
    value = float(gain)
    if not math.isfinite(value):
        raise ValueError(f"a gain of {value}")
    return value
