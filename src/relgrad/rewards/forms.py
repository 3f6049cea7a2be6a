"""What a plan for a web form is worth: the success page, the fields as they were submitted, the steps that executed.

    score = success_weight · success + fields_weight · field accuracy + steps_weight · executed steps / steps

See environments/forms/outcome.py for the parts, environments/forms/plan.py for plans. A plan in broken syntax scores what its
other steps achieve. What a browser failed to execute is unscored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

from pydantic import Field, model_validator

from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.forms.executing.browser import Browser
from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.making.generate import rebuild
from relgrad.environments.forms.outcome import Executor, Outcome, Text, Unscored, field_accuracy
from relgrad.environments.forms.plan import Plan, parse
from relgrad.rewards._columns import column, unscored

Part = Literal["success", "perfect", "field_accuracy", "executed", "submitted", "nonzero"]

PARTS = {
    "success": "1 where the server accepted the form and showed its success page",
    "perfect": "1 where it did, and every field was sent exactly as it was to be",
    "field_accuracy": "how right the fields were that were sent, from 0 to 1; 0 where nothing was sent",
    "executed": "share of the plan's steps that did what they say",
    "submitted": "1 where the form was sent at all",
    "steps": "lines of the plan",
    "broken": "share of the plan's lines that are no steps",
    "nonzero": "1 where the reward is above 0",
}
"""What the parts of a score mean."""


class Settings(Strict):
    """`part` is for monitors: its value in place of the sum."""

    executor: Literal["html", "browser"] = "html"
    success_weight: float = Field(0.4, ge=0)
    fields_weight: float = Field(0.4, ge=0)
    steps_weight: float = Field(0.2, ge=0)
    part: Part | None = None
    text: Text = Field("ratio", description="text counts by difflib's ratio, or only when it is exact")
    timeout: float = Field(20.0, gt=0, description="seconds per plan in the browser")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if not self.success_weight + self.fields_weight + self.steps_weight:
            raise ValueError("success_weight, fields_weight and steps_weight are all 0; give one of them a weight")
        return self


def build(settings: Settings) -> FormReward:
    """Raises RelgradError where the browser is asked for and not installed."""
    return FormReward(_executor(settings.executor, settings.timeout), settings)


@cache
def _executor(kind: str, timeout: float) -> Executor:
    """One for all rewards of a process: several of them (a monitor of success, say) share a browser and its outcomes."""
    return Remembering(Browser(timeout)) if kind == "browser" else InProcess()


class Remembering:
    """An executor that executes equal plans on a form once, as far as the last `size` outcomes go."""

    def __init__(self, executor: Executor, size: int = 32_768) -> None:
        self._executor, self._size = executor, size
        self._known: dict[tuple[Form, Plan], Outcome] = {}

    def run_all(self, form: Form, plans: Sequence[Plan]) -> list[Outcome | Unscored]:
        """As the executor has it; what was unscored is tried again the next time."""
        new = [plan for plan in dict.fromkeys(plans) if (form, plan) not in self._known]
        outcome_of = dict(zip(new, self._executor.run_all(form, new), strict=True))
        answers = [outcome_of[plan] if plan in outcome_of else self._known[form, plan] for plan in plans]
        self._known |= {(form, plan): outcome for plan, outcome in outcome_of.items() if isinstance(outcome, Outcome)}
        for oldest in list(self._known)[: -self._size]:
            self._known.pop(oldest, None)
        return answers


class FormReward:
    """A reward in relgrad's own form, for prompts of the task `forms`."""

    def __init__(self, executor: Executor, settings: Settings) -> None:
        self.executor, self.settings = executor, settings

    def __call__(self, prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        spec = column(prompt, "form", "forms")
        if spec is None:
            return [unscored("column 'form' is None")] * len(outputs)
        return self.scores(rebuild(spec), [output.text for output in outputs])

    def scores(self, form: Form, texts: Sequence[str]) -> list[Score]:
        """What these plans are worth for this form."""
        plans = [parse(text) for text in texts]
        outcomes = self.executor.run_all(form, plans)
        return [self._score(form, plan, outcome) for plan, outcome in zip(plans, outcomes, strict=True)]

    def _score(self, form: Form, plan: Plan, outcome: Outcome | Unscored) -> Score:
        if isinstance(outcome, Unscored):
            return unscored(str(outcome))
        parts = figures(form, plan, outcome, self.settings.text)
        weights = self.settings
        value = (
            weights.success_weight * parts["success"]
            + weights.fields_weight * parts["field_accuracy"]
            + weights.steps_weight * parts["executed"]
        )
        parts["nonzero"] = float(value > 0)
        return Score(value if weights.part is None else parts[weights.part], parts)


def figures(form: Form, plan: Plan, outcome: Outcome, text: Text) -> dict[str, float]:
    """The parts of a score; `perfect`: success with every field exact; `broken`: the share of lines that are no steps."""
    exact = field_accuracy(form, outcome.submitted, "exact") == 1
    shares = {
        "success": float(outcome.success),
        "perfect": float(outcome.success and exact),
        "field_accuracy": field_accuracy(form, outcome.submitted, text),
        "executed": outcome.share,
        "submitted": float(outcome.submitted is not None),
        "steps": float(len(plan.steps)),
        "broken": len(plan.errors) / len(plan.steps) if plan.steps else 0.0,
    }
    assert all(map(math.isfinite, shares.values()))
    return shares
