"""Four parts of a file of replies: supervised phase, GRPO phase, validation, test. By post, and alike in engagement.

Rows are put together into clusters that stay together: all replies to a post, and to posts that are nearly the same (near.py). The
engagement of a row is likes of the reply / max(likes of the post, 1), and its quartile that among all rows. Clusters, the largest
first and equal ones in an order drawn by the seed, go where their quartiles are most needed:

    part of cluster c = argmax over parts p of  Σ_q  n_q(c) · (target_q(p) - filled_q(p)) / target_q(p)

(iterative stratification, Sechidis et al. 2011, of clusters in place of rows). Rows without engagement are a fifth stratum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from relgrad.core.errors import RelgradError
from relgrad.text.replies.near import groups_of, near_pairs
from relgrad.text.replies.rows import Row

PARTS = ("phase1", "phase2", "validation", "test")
FILES = {
    "phase1": "train_phase1_sft.jsonl",
    "phase2": "train_phase2_grpo.jsonl",
    "validation": "validation.jsonl",
    "test": "test.jsonl",
}
TOLERANCE = 0.05
"""How far a part's size, and a quartile's share of a part, may be from what it should be."""
UNKNOWN = 4
"""The stratum of rows without engagement."""


@dataclass(frozen=True)
class Check:
    """One thing that must be true of a split."""

    name: str
    passed: bool
    detail: str


@dataclass
class Split:
    """Rows by part, and the strata they were balanced by."""

    parts: dict[str, list[Row]]
    strata: dict[str, list[int]]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def shares_of(split_ratio: float, validation: float, test: float) -> dict[str, float]:
    """The share of each part: what is not held out goes to the phases by `split_ratio`. Raises RelgradError for impossible ones."""
    if not (0 <= split_ratio <= 1 and validation >= 0 and test >= 0 and validation + test < 1):
        raise RelgradError(
            f"split: split_ratio={split_ratio}, validation={validation}, test={test}: the ratio lies between 0 and 1, and the "
            "shares to validate and test by are at least 0 and together less than 1"
        )
    train = 1 - validation - test
    return {"phase1": train * split_ratio, "phase2": train * (1 - split_ratio), "validation": validation, "test": test}


def engagement(row: Row) -> float:
    """Likes of the reply per like of the post; NaN where the row has none."""
    if "reply_likes" not in row:
        return float("nan")
    return float(row["reply_likes"] / max(row.get("tweet_likes", 1), 1))


def quartiles_of(values: Sequence[float]) -> list[int]:
    """The quartile, 0 to 3, of each value among all that are known; `UNKNOWN` where it is NaN. Equal values share one."""
    value_N = np.asarray(values, dtype=float)
    known_N = np.isfinite(value_N)
    if not known_N.any():
        return [UNKNOWN] * len(value_N)
    cuts = np.percentile(value_N[known_N], [25, 50, 75])
    return np.where(known_N, np.searchsorted(cuts, value_N, side="left"), UNKNOWN).tolist()


def split(rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> Split:
    """The rows in parts, each in an order drawn by the seed, with their checks. Raises RelgradError where there is no row."""
    if not rows:
        raise RelgradError("split: there are no rows")
    strata = quartiles_of([engagement(row) for row in rows])
    cluster_N = _clusters(rows)
    _require_enough(len(set(cluster_N)), len({row["tweet_id"] for row in rows}), shares)
    assigned = _assign(cluster_N, strata, shares, Random(f"{seed}/split"))
    order = list(range(len(rows)))
    Random(f"{seed}/split/order").shuffle(order)
    numbers = {part: [n for n in order if assigned[cluster_N[n]] == part] for part in shares}
    result = Split(
        {part: [rows[n] for n in own] for part, own in numbers.items()},
        {part: [strata[n] for n in own] for part, own in numbers.items()},
    )
    result.checks = checks_of(result, shares)
    levels = sorted(set(strata) - {UNKNOWN})
    if len(levels) < 4:
        names = ", ".join(f"Q{level + 1}" for level in levels) or "none"
        result.notes.append(f"engagement has equal values, so that only these quartiles have rows: {names}")
    return result


def _require_enough(clusters: int, posts: int, shares: Mapping[str, float]) -> None:
    """Raise RelgradError where there are fewer clusters of posts than parts that are to have some."""
    parts = [part for part, share in shares.items() if share > 0]
    if clusters < len(parts):
        alike = "" if clusters == posts else f" ({clusters} once nearly equal ones are put together)"
        raise RelgradError(
            f"split: {posts} post{'s' * (posts != 1)}{alike} for {len(parts)} parts ({', '.join(parts)}), and a post is "
            "in one part alone. Give more posts, or fewer parts: --validation 0, --test 0, --split-ratio 1 for one phase"
        )


def _clusters(rows: Sequence[Row]) -> list[int]:
    """For each row the number of its cluster."""
    numbers: dict[str, int] = {}
    texts: list[str] = []
    text_of: dict[str, int] = {}
    for row in rows:
        if row["tweet_id"] not in numbers:
            folded = row["tweet"].casefold()
            if folded not in text_of:
                text_of[folded] = len(texts)
                texts.append(row["tweet"])
            numbers[row["tweet_id"]] = text_of[folded]
    cluster_of = groups_of(len(texts), near_pairs(texts))
    return [cluster_of[numbers[row["tweet_id"]]] for row in rows]


def _assign(
    cluster_N: Sequence[int], strata: Sequence[int], shares: Mapping[str, float], draw: Random
) -> dict[int, str]:
    """The part of every cluster."""
    parts = [part for part, share in shares.items() if share > 0]
    counts: dict[int, np.ndarray] = {}
    for cluster, stratum in zip(cluster_N, strata, strict=True):
        counts.setdefault(cluster, np.zeros(UNKNOWN + 1))[stratum] += 1
    target_PS = np.array([[shares[part]] for part in parts]) * sum(counts.values())
    filled_PS = np.zeros_like(target_PS)
    clusters = list(counts)
    draw.shuffle(clusters)
    assigned = {}
    for cluster in sorted(clusters, key=lambda c: -counts[c].sum()):
        need_PS = np.divide(target_PS - filled_PS, target_PS, out=np.zeros_like(target_PS), where=target_PS > 0)
        best = int(np.argmax(need_PS @ counts[cluster]))
        filled_PS[best] += counts[cluster]
        assigned[cluster] = parts[best]
    return assigned


# ---------------------------------------------------------------------- checks and figures


def checks_of(result: Split, shares: Mapping[str, float]) -> list[Check]:
    """What must be true of a split, measured on its rows alone."""
    posts = {part: {row["tweet_id"]: row["tweet"] for row in rows} for part, rows in result.parts.items()}
    homes: dict[str, set[str]] = {}
    for part, own in posts.items():
        for post in own:
            homes.setdefault(post, set()).add(part)
    shared = sum(len(parts) > 1 for parts in homes.values())
    return [
        Check("posts", not shared, f"{shared} posts are in more than one part"),
        _near_check(posts),
        *_size_checks(result, shares),
        *_quartile_checks(result),
    ]


def _near_check(posts: Mapping[str, Mapping[str, str]]) -> Check:
    part_of = [(part, text) for part, own in posts.items() for text in own.values()]
    across = sum(part_of[a][0] != part_of[b][0] for a, b in near_pairs([text for _, text in part_of]))
    return Check("near duplicates", not across, f"{across} pairs of nearly equal posts are in different parts")


def _size_checks(result: Split, shares: Mapping[str, float]) -> list[Check]:
    total = sum(map(len, result.parts.values()))
    checks = []
    for part, rows in result.parts.items():
        share = len(rows) / total
        passed = abs(share - shares[part]) < TOLERANCE and bool(rows or not shares[part])
        checks.append(Check(f"size of {part}", passed, f"{len(rows)} rows, {share:.3f} of all for {shares[part]:.3f}"))
    return checks


def _quartile_checks(result: Split) -> list[Check]:
    """Each stratum's share of each part against its share of all rows."""
    every = [stratum for own in result.strata.values() for stratum in own]
    overall_S = np.bincount(every, minlength=UNKNOWN + 1) / len(every)
    checks = []
    for part, own in result.strata.items():
        if own:
            gap = float(np.abs(np.bincount(own, minlength=UNKNOWN + 1) / len(own) - overall_S).max())
            detail = f"a quartile's share is off by at most {gap:.3f}"
            checks.append(Check(f"engagement of {part}", gap < TOLERANCE, detail))
    return checks


def statistics_of(result: Split) -> dict[str, Any]:
    """Per part: rows, posts, and mean, std, median, least and most of engagement and of the replies' characters; quartiles."""
    return {
        part: {
            "count": len(rows),
            "posts": len({row["tweet_id"] for row in rows}),
            "engagement": _figures([e for e in map(engagement, rows) if e == e]),
            "length": _figures([len(row["reply"]) for row in rows]),
            "quartiles": np.bincount(result.strata[part], minlength=UNKNOWN + 1).tolist(),
        }
        for part, rows in result.parts.items()
    }


def _figures(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    value_N = np.asarray(values, dtype=float)
    return {
        "mean": float(value_N.mean()),
        "std": float(value_N.std()),
        "median": float(np.median(value_N)),
        "min": float(value_N.min()),
        "max": float(value_N.max()),
    }
