"""A plan watched while a real browser executes it: a picture of the page after every step."""

from __future__ import annotations

from typing import Any

from relgrad.environments.forms.executing.browser import Browser
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.outcome import Outcome
from relgrad.environments.forms.pages.page import Frame
from relgrad.environments.forms.plan import Plan


def watch(browser: Browser, form: Form, plan: Plan) -> tuple[Outcome, list[Frame]]:
    """Execute the plan with a picture per step. Raises Unscored where the browser fails or takes too long."""
    frames: list[Frame] = []

    async def after(page: Any, number: int, executed: bool | None) -> None:
        if executed is None:
            frames.clear()  # a browser that died begins the plan anew
        line = "" if executed is None else plan.steps[number].line
        frames.append(Frame(line, executed, await page.screenshot(full_page=True)))

    return browser.run(form, plan, after), frames
