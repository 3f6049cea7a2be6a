"""The page of a comparison (the record of `relgrad compare`), in the report's style: tables, and every difference drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from relgrad.core.run_folder import finite, write_atomic
from relgrad.monitor.intervals import counted
from relgrad.monitor.report.templates import template

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WIDTH = 200
"""Of a drawing, in its own units; every figure's differences share a scale."""


def letter(number: int) -> str:
    """What a contender is called in tables: A, B, … Z, then 27, 28 …"""
    return LETTERS[number] if number < len(LETTERS) else str(number + 1)


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value): what was asked, and how."""
    part = str(record["part"])
    return [
        (
            "Prompts",
            f"{record['prompts']:,} {part} prompts"
            if part in ("test", "validation")
            else f"{record['prompts']:,} of {part}",
        ),
        ("Task", str(record["task"])),
        ("Completions", f"{record['num_generations']} a prompt"),
        ("Judged as", str(record["measured_as"])),
        *([("Passes", record["suite"]["passing"])] if record["suite"] and record["suite"]["passing"] else []),
    ]


def seeds(contender: Mapping[str, Any]) -> str:
    """The seeds of a contender's trainings."""
    return ", ".join(str(training["seed"]) for training in contender["trainings"])


def heading(record: Mapping[str, Any]) -> str:
    """What a difference is called."""
    return "A − this" if record["mirrored"] else "this − A"


def over(estimate: Mapping[str, Any], *contenders: Mapping[str, Any]) -> str:
    """What an interval is over, and of how many of the contenders' trainings where not of all."""
    words, count = counted(estimate["units"], estimate["over"]), max(len(one["trainings"]) for one in contenders)
    alone = estimate["trainings"] < count and estimate["over"] != "seeds"
    return f"{words}, {estimate['trainings']} of {count} seeds" if alone else words


def preferred(record: Mapping[str, Any]) -> list[str]:
    """What the pairwise judge says, a sentence a policy; empty without one."""
    pairwise: Mapping[str, Any] = (record["suite"] or {}).get("pairwise") or {}
    sentences = []
    for i, row in enumerate(pairwise.get("rows", ())):
        if row is None:
            continue
        rate = "no prompt was judged" if not row["prompts"] else f"{row['rate']:.3f} of {row['prompts']} prompts"
        ends = "" if _is_unknown(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}], p {row['p']:.3f}"
        left_out = f"{row['unparsed']} unparsed, {row['failed']} failed"
        sentences.append(
            f"{letter(i)} preferred to A by {pairwise['judge']}, both orders: {rate}{ends}; left out: {left_out}"
        )
    return sentences


def _is_unknown(value: Any) -> bool:
    return value is None or math.isnan(value)


def write_comparison(record: Mapping[str, Any], path: Path, pictures: Sequence[str] = ()) -> Path:
    """Write the page, one HTML file that needs nothing else, with figures as SVG; returns `path`."""
    write_atomic(path, render(record, pictures))
    return path


def render(record: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The HTML text, with figures as SVG. Jinja escapes every value; there are no scripts."""
    from markupsafe import Markup

    plain = finite(record)
    contenders = plain["contenders"]
    return template("comparison.html.j2", _number).render(
        facts=facts(plain),
        notes=plain["notes"],
        heading=heading(plain),
        contenders=[
            {
                "letter": letter(i),
                "label": one["label"],
                "seeds": seeds(one),
                "sources": [t["source"] for t in one["trainings"]],
            }
            for i, one in enumerate(contenders)
        ],
        figures=[
            {"name": figure["name"], "kind": figure["kind"], "rows": _rows(figure, contenders)}
            for figure in plain["figures"]
        ],
        suite=plain["suite"],
        preferred=preferred(plain),
        pictures=[Markup(picture) for picture in pictures],
        width=WIDTH,
        css=Markup(resources.files("relgrad.monitor.report").joinpath("report.css").read_text(encoding="utf-8")),
    )


def _rows(figure: Mapping[str, Any], contenders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per contender: its mean, its difference, and where the difference is drawn."""
    reach = max((_reach(one) for one in figure["differences"] if one is not None), default=0.0) or 1.0
    rows = []
    for i, (mean, difference) in enumerate(zip(figure["means"], figure["differences"], strict=True)):
        rows.append(
            {
                "letter": letter(i),
                "mean": {**mean, "over": over(mean, contenders[i])},
                "difference": difference and {**difference, "over": over(difference, contenders[0], contenders[i])},
                "verdict": figure["verdicts"][i] if "verdicts" in figure else None,
                "drawn": difference and {key: _place(difference[key], reach) for key in ("low", "value", "high")},
            }
        )
    return rows


def _reach(estimate: Mapping[str, Any]) -> float:
    """How far from 0 an estimate and its interval go."""
    distances = [
        abs(v) for v in (estimate["low"], estimate["value"], estimate["high"]) if v is not None and math.isfinite(v)
    ]
    return max(distances, default=0.0)


def _place(value: float | None, reach: float) -> float | None:
    """Where a value is drawn: 0 in the middle, `reach` near the edges."""
    return None if value is None else round(WIDTH / 2 * (1 + 0.94 * value / reach), 2)


def _number(value: Any, signed: bool = False) -> str:
    """Three decimals, a true minus sign, a dash for what is not a number."""
    if not isinstance(value, (int, float)):
        return "–"
    return f"{value:+.3f}".replace("-", "−") if signed else f"{value:.3f}".replace("-", "−")
