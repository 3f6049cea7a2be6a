"""Prompts with what was written for them before and after training, those whose outcome changed most first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from relgrad.monitor.report.read import squeezed
from relgrad.monitor.report.truth import written


def before_after(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prompts that the first and the last evaluation of a name share, each with its completions before and after."""
    pairs = []
    for name in dict.fromkeys(str(e.get("name", "score")) for e in evaluations):
        records = [e for e in evaluations if str(e.get("name", "score")) == name and e.get("samples")]
        if len(records) < 2:
            continue
        before, after = _by_prompt(records[0]["samples"]), _by_prompt(records[-1]["samples"])
        for prompt in before:
            if prompt in after:
                pairs.append({"name": name, "prompt": prompt, "before": before[prompt], "after": after[prompt],
                              "truth": _truth(before[prompt]), "change": _change(before[prompt], after[prompt]),
                              "steps": (records[0].get("step"), records[-1].get("step"))})  # fmt: skip
    return sorted(pairs, key=_least_changed)


def outcomes(pairs: Sequence[Mapping[str, Any]]) -> str:
    """How many prompts score higher, lower and as before, in words."""
    changes = [pair["change"] for pair in pairs if pair["change"] is not None]
    rose, fell = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    unscored = f", {len(pairs) - len(changes)} unscored" if len(changes) < len(pairs) else ""
    return (
        f"Of {len(pairs)} prompts {rose} score higher, {fell} lower, {len(changes) - rose - fell} as before{unscored}."
    )


def _least_changed(pair: Mapping[str, Any]) -> tuple[float, bool]:
    texts = [[entry["completion"] for entry in pair[side]] for side in ("before", "after")]
    return -abs(pair["change"] or 0.0), texts[0] == texts[1]


def _change(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> float | None:
    sides = [
        [float(e["score"]) for e in entries if isinstance(e["score"], (int, float))] for entries in (before, after)
    ]
    return fmean(sides[1]) - fmean(sides[0]) if all(sides) else None


def _truth(entries: Sequence[Mapping[str, Any]]) -> Any:
    return next((entry["truth"] for entry in entries if entry["truth"]), None)


def _by_prompt(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        entry = {**written(sample), "score": sample.get("score")}
        grouped.setdefault(squeezed(sample.get("prompt", "")), []).append(entry)
    return grouped
