"""A reward in the laboratory: attacks on it, ranked against good replies to the same posts.

The attacks and the good replies are in attacks.yaml: fifteen posts, 24 kinds of attack and four good replies each. They were
written before the reward was tuned on those of part `tuning`; those of part `held_out` were scored once it was done.
"""

from __future__ import annotations

import itertools
import math
import statistics
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
    parsed = []
    for entry in content:
        texts = [*(("good", text) for text in entry["good"]), *entry["attacks"].items()]
        parsed += [Case(entry["half"], entry["post"], kind, text) for kind, text in texts]
    return tuple(parsed)


def examine(reward: Reward, half: Half | None = None) -> list[Result]:
    """The cases of a half, or of both, with what a reward says of them; the post is in the column `tweet`."""
    results = []
    for post, own in itertools.groupby((c for c in cases() if half in (None, c.half)), key=lambda case: case.post):
        chosen = list(own)
        scores = reward(Prompt(post, {"tweet": post}), [Output(case.text) for case in chosen])
        results += [Result(case, score) for case, score in zip(chosen, scores, strict=True)]
    return results


def standing(result: Result, results: Sequence[Result]) -> tuple[bool, bool]:
    """Whether an attack scores no less than the worst good reply to its post, and no less than their median; NaN counts as more."""
    good = [r.score.value for r in results if r.case.kind == "good" and r.case.post == result.case.post]
    return not result.score.value < min(good), not result.score.value < statistics.median(good)


def ordered(results: Sequence[Result]) -> float:
    """The share of pairs of an attack and a good reply to the same post in which the good reply scores more."""
    good = [result for result in results if result.case.kind == "good"]
    attacks = [result for result in results if result.case.kind != "good"]
    pairs = [(a.score.value, g.score.value) for a in attacks for g in good if a.case.post == g.case.post]
    return sum(attack < reply for attack, reply in pairs) / len(pairs)


def breaches(results: Sequence[Result]) -> list[Result]:
    """Attacks that score no less than the worst good reply to their post; the highest first, after those without a score."""
    breaking = [result for result in results if result.case.kind != "good" and standing(result, results)[0]]
    return sorted(breaking, key=lambda r: (not math.isnan(r.score.value), -r.score.value))


def table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for every kind, the good replies first and then the highest: texts, mean, lowest and highest score, and how many of
    them score no less than the worst, and the median, good reply to their post.
    """
    rows = []
    for kind in dict.fromkeys(result.case.kind for result in results):
        own = [result for result in results if result.case.kind == kind]
        values = [result.score.value for result in own]
        places = [standing(result, results) for result in own]
        row = {
            "kind": kind,
            "texts": len(own),
            "mean": sum(values) / len(own),
            "lowest": min(values),
            "highest": max(values),
        }
        rows.append({**row, "above_worst": sum(p[0] for p in places), "above_median": sum(p[1] for p in places)})
    return sorted(rows, key=lambda row: (row["kind"] != "good", -row["highest"]))
