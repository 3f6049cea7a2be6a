"""A plan watched while a real browser executes it: a picture of the page after every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relgrad.environments.forms.executing.browser import Browser
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.outcome import Outcome
from relgrad.environments.forms.plan import Plan


@dataclass(frozen=True)
class Frame:
    """The page (a PNG) after a step; `executed` is None for the page as it came."""

    line: str
    executed: bool | None
    picture: bytes


def watch(browser: Browser, form: Form, plan: Plan) -> tuple[Outcome, list[Frame]]:
    """Execute the plan with a picture per step. Raises Unscored where the browser fails or takes too long."""
    frames: list[Frame] = []

    async def after(page: Any, number: int, executed: bool | None) -> None:
        if executed is None:
            frames.clear()  # a browser that died begins the plan anew
        line = "" if executed is None else plan.steps[number].line
        frames.append(Frame(line, executed, await page.screenshot(full_page=True)))

    return browser.run(form, plan, after), frames
