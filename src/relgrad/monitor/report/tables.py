"""A comparison as files for other programs: CSV, a row for every figure and policy, and LaTeX, a table to include."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from relgrad.core.run_folder import write_atomic
from relgrad.monitor.report.comparison import letter

COLUMNS = (
    "figure", "kind", "primary", "policy", "label", "seeds", "mean", "low", "high", "over", "units",
    "difference", "difference_low", "difference_high", "difference_over", "difference_units",
    "p", "p_holm", "d_z", "cliffs_delta", "crossed_low", "crossed_high",
)  # fmt: skip
SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def write_csv(record: Mapping[str, Any], path: Path) -> Path:
    """Write the table; an unknown number is an empty cell. Returns `path`."""
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for row in _rows(record):
        rows.writerow({key: "" if _unknown(value) else value for key, value in row.items()})
    write_atomic(path, text.getvalue())
    return path


def write_latex(record: Mapping[str, Any], path: Path) -> Path:
    """Write a booktabs table: a row a figure, a column a policy, each mean with what its difference to the first is.

    A star: the adjusted p-value is below .05. Returns `path`.
    """
    contenders = record["contenders"]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(contenders)}}}",
        "\\toprule",
        " & ".join(["", *(f"{letter(i)}" for i in range(len(contenders)))]) + r" \\",
        "\\midrule",
    ]
    for figure in record["figures"]:
        cells = [_latex_cell(figure, i) for i in range(len(contenders))]
        lines.append(" & ".join([escaped(figure["name"]), *cells]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {letter(i)}: {one['label']}" for i, one in enumerate(contenders)]
    write_atomic(path, "\n".join(lines) + "\n")
    return path


def escaped(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(SPECIAL.get(char, char) for char in text)


def _latex_cell(figure: Mapping[str, Any], number: int) -> str:
    mean, difference = figure["means"][number], figure["differences"][number]
    if _unknown(mean["value"]):
        return "--"
    shown = f"{mean['value']:.3f}"
    if difference is None or _unknown(difference["value"]):
        return shown
    verdict = figure.get("verdicts", [None] * (number + 1))[number]
    star = "^*" if verdict and not _unknown(verdict["p_holm"]) and verdict["p_holm"] < 0.05 else ""
    return f"{shown} (${difference['value']:+.3f}{star}$)"


def _rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    primary = record["suite"]["primary"] if record.get("suite") else None
    for figure in record["figures"]:
        verdicts = figure.get("verdicts") or [None] * len(figure["means"])
        zipped = zip(record["contenders"], figure["means"], figure["differences"], verdicts, strict=True)
        for i, (one, mean, difference, verdict) in enumerate(zipped):
            yield {
                "figure": figure["name"],
                "kind": figure["kind"],
                "primary": int(figure["name"] == primary),
                "policy": letter(i),
                "label": one["label"],
                "seeds": " ".join(str(training["seed"]) for training in one["trainings"]),
                "mean": mean["value"],
                **{key: mean[key] for key in ("low", "high", "over", "units")},
                **_of(
                    difference,
                    {"value": "difference"} | {k: f"difference_{k}" for k in ("low", "high", "over", "units")},
                ),
                **_of(verdict, {k: k for k in ("p", "p_holm", "d_z", "cliffs_delta", "crossed_low", "crossed_high")}),
            }


def _of(values: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: None if values is None else values[key] for key, name in names.items()}


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
