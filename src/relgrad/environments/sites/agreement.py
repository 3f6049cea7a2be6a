"""Which pages may be executed in process: those that are still, and on which both executors agree.

A page is compared once: on a reference plan and `MUTATED` others that are made from it by mistakes. One difference in what was
executed, sent or taken, and all plans of the page are for Chromium.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.forms.plan import Plan
from relgrad.environments.forms.sentences import parse
from relgrad.environments.sites.controls import READ, Offer
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.still import READ_STILL, NotSure, StillPage, execute
from relgrad.environments.sites.visit import After, Where

MUTATED = 20
Run = Callable[[Sequence[Plan], After | None], list[SiteOutcome | Unscored]]
"""Executes plans on the page in Chromium."""


def mutated(text: str, count: int, key: str) -> list[str]:
    """So many plans with one to three mistakes each: lines left out, doubled, swapped; characters left out; other verbs."""
    random = Random(key)
    plans: list[str] = []
    while len(plans) < count:
        lines = text.split("\n")
        for _ in range(random.randint(1, 3)):
            place = random.randrange(len(lines))
            match random.randrange(5):
                case 0 if len(lines) > 1:
                    del lines[place]
                case 1:
                    lines.insert(place, lines[place])
                case 2:
                    other = random.randrange(len(lines))
                    lines[place], lines[other] = lines[other], lines[place]
                case 3 if lines[place]:
                    cut = random.randrange(len(lines[place]))
                    lines[place] = lines[place][:cut] + lines[place][cut + 1 :]
                case _:
                    _, space, rest = lines[place].partition(" ")
                    lines[place] = random.choice(("fill", "choose", "check", "uncheck", "click")) + space + rest
        plans.append("\n".join(lines))
    return plans


def still_page(where: Where, reference: str, run: Run) -> StillPage | None:
    """The page, for plans in process; None where it is not still, or the executors disagree on it."""
    if where.rule.selector is not None or not _is_the_same_twice(where.url):
        return None
    pages: list[StillPage] = []

    async def read(tab: Any, number: int, executed: bool | None) -> None:
        offer = Offer.of(await tab.evaluate(READ))
        forms = await tab.evaluate(READ_STILL)
        if forms is not None:
            pages.append(StillPage(offer, tuple(forms)))

    run([parse("")], read)
    if not pages or not pages[0].is_modelled:
        return None
    plans = [parse(text) for text in (reference, *mutated(reference, MUTATED, where.path))]
    answers = run(plans, None)
    agreed = all(_agree(pages[0], where, plan, answer) for plan, answer in zip(plans, answers, strict=True))
    return pages[0] if agreed else None


def _agree(page: StillPage, where: Where, plan: Plan, answer: SiteOutcome | Unscored) -> bool:
    if isinstance(answer, Unscored):
        return False
    try:
        outcome = execute(page, where, plan)
    except NotSure:
        return True  # and Chromium will be asked
    return (outcome.success, outcome.submitted, outcome.executed) == (answer.success, answer.submitted, answer.executed)


def _is_the_same_twice(url: str) -> bool:
    """Whether the server sends the page equal twice, without a cookie: one with a token of its own differs."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    bodies = []
    for _ in range(2):
        try:
            with opener.open(url, timeout=60) as answer:
                if answer.headers.get("Set-Cookie"):
                    return False
                bodies.append(answer.read())
        except OSError:
            return False
    return bodies[0] == bodies[1]
