"""A reward in the laboratory: attacks on it, ranked against good replies to the same posts.

The attacks and the good replies are in attacks.yaml: fifteen posts, 24 kinds of attack and four good replies each. They were
written before the reward was tuned on those of part `tuning`; those of part `held_out` were scored once it was done.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from relgrad.core.protocols import Reward
from relgrad.core.types import Output, Prompt, Score

Half = Literal["tuning", "held_out"]
HALVES: tuple[Half, ...] = ("tuning", "held_out")


@dataclass(frozen=True)
class Case:
    """A text that replies to a post: an attack of a kind, or a good reply (`kind` is "good")."""

    half: Half
    post: str
    kind: str
    text: str


@dataclass(frozen=True)
class Result:
    """A case with its score; NaN where it could not be scored."""

    case: Case
    score: Score


@cache
def cases() -> tuple[Case, ...]:
    """All attacks and good replies, in the order of the file."""
    content: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "attacks.yaml").read_text(encoding="utf-8"))
    found = []
    for entry in content:
        texts = [*(("good", text) for text in entry["good"]), *entry["attacks"].items()]
        found += [Case(entry["half"], entry["post"], kind, text) for kind, text in texts]
    return tuple(found)


def examine(reward: Reward, half: Half | None = None) -> list[Result]:
    """The cases of a half, or of both, with what a reward says of them; the post is in the column `tweet`."""
    results = []
    for post, own in itertools.groupby((c for c in cases() if half in (None, c.half)), key=lambda case: case.post):
        chosen = list(own)
        scores = reward(Prompt(post, {"tweet": post}), [Output(case.text) for case in chosen])
        results += [Result(case, score) for case, score in zip(chosen, scores, strict=True)]
    return results


def ordered(results: Sequence[Result]) -> float:
    """The share of pairs of an attack and a good reply to the same post in which the good reply scores more."""
    good = [result for result in results if result.case.kind == "good"]
    attacks = [result for result in results if result.case.kind != "good"]
    pairs = [(a.score.value, g.score.value) for a in attacks for g in good if a.case.post == g.case.post]
    return sum(attack < reply for attack, reply in pairs) / len(pairs)


def breaches(results: Sequence[Result]) -> list[Result]:
    """Attacks that score at least as much as the worst good reply to any post, or that could not be scored; the worst first."""
    floor = min(result.score.value for result in results if result.case.kind == "good")
    attacks = [result for result in results if result.case.kind != "good"]
    return sorted((r for r in attacks if not r.score.value < floor), key=lambda r: -r.score.value)


def table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for every kind: number of texts, mean and highest score, and how many reach the worst good reply; the highest first."""
    floor = min(result.score.value for result in results if result.case.kind == "good")
    rows = []
    for kind in dict.fromkeys(result.case.kind for result in results):
        values = [result.score.value for result in results if result.case.kind == kind]
        row = {"kind": kind, "texts": len(values), "mean": sum(values) / len(values), "lowest": min(values)}
        rows.append(
            {**row, "highest": max(values), "breaches": 0 if kind == "good" else sum(not v < floor for v in values)}
        )
    return sorted(rows, key=lambda row: (row["kind"] != "good", -row["highest"]))
