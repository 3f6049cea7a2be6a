"""`python -m benchmarks.forms [--browser]`: plans per second of the two executors of web forms, in groups as a recipe has them.

A group is one new form of a held-out family and eight plans for it: the reference plan and seven with one character less, so that
half of them or so are sent. What is timed is the reward: rendering and reading the page, parsing, executing, comparing.
Wall time needs a quiet machine; CPU seconds are those of all processes, the browser's among them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated

import psutil
import typer

from relgrad.environments.forms.executing.browser import Browser
from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.making import families, wording
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.making.generate import make
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.forms.outcome import Executor
from relgrad.rewards.forms import FormReward, Settings

GROUP = 8


@dataclass(frozen=True)
class Speed:
    """`agreed`: the share of the plans that scored as they do in process."""

    per_second: float
    per_cpu_second: float
    agreed: float


def groups(count: int) -> list[tuple[Form, list[str]]]:
    """Forms with the plans of their groups."""
    rng, names = Random(0), families.names("validation", "test")
    found = []
    for number in range(count):
        form = make(names[number % len(names)], rng.randrange(2**40), Grammar())
        plan = wording.plan(form)
        cuts = [rng.randrange(len(plan)) for _ in range(GROUP - 1)]
        found.append((form, [plan, *(plan[:cut] + plan[cut + 1 :] for cut in cuts)]))
    return found


def measure(executor: Executor, jobs: Sequence[tuple[Form, list[str]]]) -> Speed:
    """Reward all groups, one after the other."""
    reward, right = FormReward(executor, Settings()), FormReward(InProcess(), Settings())
    seconds, cpu = time.perf_counter(), _cpu_seconds()
    scores = [score for form, plans in jobs for score in reward.scores(form, plans)]
    seconds, cpu = time.perf_counter() - seconds, _cpu_seconds() - cpu
    expected = [score for form, plans in jobs for score in right.scores(form, plans)]
    agreed = sum(one == other for one, other in zip(scores, expected, strict=True))
    return Speed(len(scores) / seconds, len(scores) / max(cpu, 0.01), agreed / len(scores))


def _cpu_seconds() -> float:
    """Of this process and its children that live, to 0.01."""
    here = psutil.Process()
    times = [process.cpu_times() for process in [here, *here.children(recursive=True)]]
    return sum(t.user + t.system for t in times)


def main(
    browser: Annotated[bool, typer.Option("--browser", help="Chromium too.")] = False,
    count: Annotated[
        int, typer.Option("--groups", min=1, help="Groups in Chromium; in process 50 times as many.")
    ] = 10,
) -> None:
    """Print a line per executor."""
    print(f"{'executor':10s} {'plans/s':>10s} {'plans/CPU s':>12s} {'agreed':>8s}")
    _print("in process", measure(InProcess(), groups(50 * count)))
    if browser:
        chromium = Browser(600.0)
        measure(chromium, groups(1))  # starts it
        _print("Chromium", measure(chromium, groups(count)))
        chromium.close()


def _print(name: str, speed: Speed) -> None:
    print(f"{name:10s} {speed.per_second:10,.1f} {speed.per_cpu_second:12,.1f} {speed.agreed:8.0%}", flush=True)


if __name__ == "__main__":
    typer.run(main)
