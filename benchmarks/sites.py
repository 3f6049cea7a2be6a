"""`python -m benchmarks.sites [--pages N] [--groups N]`: plans per second on the example site, in Chromium, for pages side by side.

A group is one page and the reference plans of eight of its cases, as a step of GRPO has them: no two plans are equal, so none is
remembered. What is timed is the reward: executing the plans, the server's answers, comparing. Wall time needs a quiet machine; CPU
seconds are those of all processes, browser and server among them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import psutil
import typer

from relgrad.core.types import Prompt
from relgrad.environments.forms.sentences import parse
from relgrad.environments.sites.chromium import Chromium
from relgrad.environments.sites.serving import server_of
from relgrad.environments.sites.site import Site
from relgrad.rewards.site import figures
from relgrad.runs.build import find_recipe
from relgrad.runs.recipe import load_recipe
from relgrad.tasks.site import Settings, load

GROUP = 8


@dataclass(frozen=True)
class Speed:
    """`right`: the share of the plans that were taken with every field exact."""

    per_second: float
    per_cpu_second: float
    right: float


def groups(settings: Settings, count: int) -> list[list[Prompt]]:
    """Prompts of one page each, page after page, and from the first again."""
    task = load(settings, 0)
    pages: dict[str, list[Prompt]] = {}
    for prompt in (*task.train, *task.validation, *task.test):
        pages.setdefault(prompt.columns["page"], []).append(prompt)
    blocks = [prompts[start : start + GROUP] for start in range(0, 24, GROUP) for prompts in pages.values()]
    return blocks[:count]


def measure(site: Site, jobs: Sequence[list[Prompt]]) -> Speed:
    """Execute all groups, one after the other."""
    seconds, cpu, right = time.perf_counter(), _cpu_seconds(), 0.0
    for prompts in jobs:
        plans = [parse(prompt.columns["plan"]) for prompt in prompts]
        outcomes = site.run_all(prompts[0].columns["page"], plans)
        for prompt, plan, outcome in zip(prompts, plans, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                right += figures(prompt.columns["values"], plan, outcome, "exact", None)["perfect"]
    seconds, cpu = time.perf_counter() - seconds, _cpu_seconds() - cpu
    count = sum(map(len, jobs))
    return Speed(count / seconds, count / max(cpu, 0.01), right / count)


def _cpu_seconds() -> float:
    """Of this process and its children that live, to 0.01."""
    here = psutil.Process()
    times = [process.cpu_times() for process in [here, *here.children(recursive=True)]]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def main(
    pages: Annotated[list[int] | None, typer.Option("--pages", help="Pages side by side; repeatable.")] = None,
    count: Annotated[int, typer.Option("--groups", min=1, max=39, help="Groups of eight plans.")] = 13,
) -> None:
    """Print a line per number of pages side by side."""
    settings = Settings.model_validate(load_recipe(find_recipe("site-quick")).stages[0].task.options)
    jobs = groups(settings, count)
    server = server_of(settings.key)
    print(f"{'pages':>6s} {'plans/s':>10s} {'plans/CPU s':>12s} {'right':>7s}")
    for side_by_side in pages or (1, 2):
        chromium = Chromium(600.0, side_by_side)
        measure(Site(server.site, server, chromium), jobs[:1])  # starts it
        speed = measure(Site(server.site, server, chromium), jobs)
        print(f"{side_by_side:6d} {speed.per_second:10.2f} {speed.per_cpu_second:12.2f} {speed.right:7.0%}", flush=True)
        chromium.close()
    server.close()


if __name__ == "__main__":
    typer.run(main)
