"""How long the reward of replies takes, and splitting: 64 replies to 16 posts in groups of four, and 5,000 rows.

    python -m benchmarks.replies

Wall and CPU seconds of the best of five, after a first pass, on posts and replies of the built-in data set, new ones every time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from relgrad.core.types import Output, Prompt
from relgrad.rewards.replies import Settings, build
from relgrad.runs.environment import cpu_model
from relgrad.text.replies import made, splitting

GROUPS, SIZE, REPEATS = 16, 4, 5


def best(work: Callable[[int], object]) -> dict[str, float]:
    """The least wall seconds of `REPEATS` calls after a first one, and the CPU seconds of that call."""
    taken = []
    for number in range(REPEATS + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work(number)
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = min(taken[1:])
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}


def main() -> None:
    rows = made.rows()
    reward = build(Settings())
    posts = list({row["tweet_id"]: row["tweet"] for row in rows}.values())
    replies = [row["reply"] for row in rows]

    def score(number: int) -> None:
        for group in range(GROUPS):
            place = number * GROUPS + group
            own = replies[place * SIZE : (place + 1) * SIZE]
            reward(Prompt("", {"tweet": posts[place]}), [Output(text) for text in own])

    shares = splitting.shares_of(0.5, 0.05, 0.05)
    figures = {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        f"score {GROUPS * SIZE} replies": best(score),
        "split 5,000 rows": best(lambda number: splitting.split(rows[:5000], shares, number)),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
