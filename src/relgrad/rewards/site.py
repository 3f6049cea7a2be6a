"""What a plan for a page of a site is worth: the server's answer, the fields as they were submitted, the steps that executed.

    score = success_weight · success + fields_weight · field accuracy + steps_weight · executed steps / steps

See environments/sites for the parts. What a page does not allow, or the browser or the server failed at, is unscored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.forms.executing.browser import find_chromium
from relgrad.environments.forms.outcome import Text, Unscored
from relgrad.environments.forms.plan import Plan
from relgrad.environments.forms.sentences import parse
from relgrad.environments.sites.accuracy import accuracies
from relgrad.environments.sites.entering import Order
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.site import site_of
from relgrad.rewards._columns import column, unscored

Part = Literal["success", "perfect", "field_accuracy", "executed", "submitted", "nonzero"]

PARTS = {
    "success": "1 where the server took what was sent",
    "perfect": "1 where it did, and every field was sent exactly as it was to be",
    "field_accuracy": "how right the fields were that were sent, from 0 to 1; 0 where nothing was sent",
    "executed": "share of the plan's steps that did what they say",
    "submitted": "1 where anything was sent at all",
    "steps": "steps of the plan",
    "broken": "share of the plan's lines that are no steps",
    "refused": "requests to other hosts, popups and downloads that were refused",
    "nonzero": "1 where the reward is above 0",
}
"""What the parts of a score mean."""


class Settings(Strict):
    """`part` is for monitors: its value in place of the sum."""

    executor: Literal["browser", "auto"] = Field(
        "browser", description="auto: in process where a page has no script and both executors agree on it"
    )
    success_weight: float = Field(0.4, ge=0)
    fields_weight: float = Field(0.4, ge=0)
    steps_weight: float = Field(0.2, ge=0)
    part: Part | None = None
    text: Text = Field("ratio", description="text counts by difflib's ratio, or only when it is exact")
    timeout: float = Field(30.0, gt=0, description="seconds per plan in the browser")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if not self.success_weight + self.fields_weight + self.steps_weight:
            raise ValueError("success_weight, fields_weight and steps_weight are all 0; give one of them a weight")
        return self


def build(settings: Settings) -> SiteReward:
    """Raises RelgradError where no browser is installed."""
    find_chromium()
    return SiteReward(settings)


class SiteReward:
    """A reward in relgrad's own form, for prompts of the task `site`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        spec, page, values = (column(prompt, name, "site") for name in ("site", "page", "values"))
        plans = [parse(output.text) for output in outputs]
        reference = column(prompt, "plan", "site") if self.settings.executor == "auto" else None
        outcomes = site_of(spec, self.settings.timeout).run_all(page, plans, reference)
        return [self._score(values, plan, one, spec["dates"]) for plan, one in zip(plans, outcomes, strict=True)]

    def _score(
        self, values: Mapping[str, Any], plan: Plan, outcome: SiteOutcome | Unscored, order: Order | None
    ) -> Score:
        if isinstance(outcome, Unscored):
            return unscored(str(outcome))
        parts = figures(values, plan, outcome, self.settings.text, order)
        value = worth(parts, self.settings)
        parts["nonzero"] = float(value > 0)
        return Score(value if self.settings.part is None else parts[self.settings.part], parts)


def worth(parts: Mapping[str, float], weights: Settings) -> float:
    """The weighted sum."""
    return (
        weights.success_weight * parts["success"]
        + weights.fields_weight * parts["field_accuracy"]
        + weights.steps_weight * parts["executed"]
    )


def figures(
    values: Mapping[str, Any], plan: Plan, outcome: SiteOutcome, text: Text, order: Order | None
) -> dict[str, float]:
    """The parts of a score, for what was to be entered."""
    fields = {label: tuple(value) if isinstance(value, list) else value for label, value in values.items()}
    shares = accuracies(fields, outcome.submitted, outcome.controls, text, order)
    exact = accuracies(fields, outcome.submitted, outcome.controls, "exact", order)
    parts = {
        "success": float(outcome.success),
        "perfect": float(outcome.success and all(share == 1 for share in exact.values())),
        "field_accuracy": _mean(shares),
        "executed": outcome.share,
        "submitted": float(outcome.submitted is not None),
        "steps": float(len(plan.steps)),
        "broken": len(plan.errors) / len(plan.steps) if plan.steps else 0.0,
        "refused": float(sum(count for what, count in outcome.incidents.items() if what != "dialog")),
    }
    assert all(map(math.isfinite, parts.values()))
    return parts


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares) if shares else 0.0
