"""What a policy can reach on the pages of a site, before any training: per page, what its cases' labels and values meet there.

    ceiling   what the reference plans earn: a plan that says everything right without having seen the page
    floor     what is earned by sending the page as it comes, and by the reference plan of another case of the page

A page whose ceiling is below 1 says why: labels that no control answers to, values that no control takes, what was sent otherwise
than the case says, and what the server had against it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.forms.plan import Plan
from relgrad.environments.forms.sentences import parse
from relgrad.environments.sites.accuracy import accuracies
from relgrad.environments.sites.cases import Value
from relgrad.environments.sites.outcome import SiteOutcome
from relgrad.environments.sites.site import Site

SENT_AS_IT_COMES = parse("submit")
Worth = Callable[[Mapping[str, Value], Plan, SiteOutcome], float]
"""What a plan is worth for what was to be entered."""


@dataclass(frozen=True)
class CheckedCase:
    """A case as the task tells it: what to enter, and the plan that enters it."""

    values: Mapping[str, Value]
    plan: str


@dataclass
class PageReport:
    """What was found of one page. `mean` and the others are None where nothing could be scored; `unscored` says why.

    cases      how many the page has; `checked`: how many of them were executed
    part       train, validation or test; several where cases are held out
    lowest     the least that a reference plan earned; `mean`: what they earned on average
    as_it_comes, other_case   the floor
    found      label -> the control that answered, and how where it was not by its exact text
    reasons    why a reference plan earned less than 1, with the number of cases
    notes      values that were converted or rewritten, with the number of cases
    incidents  requests that were refused, popups, downloads, and dialogs that were confirmed
    """

    page: str
    part: str
    cases: int
    checked: int = 0
    mean: float | None = None
    lowest: float | None = None
    as_it_comes: float | None = None
    other_case: float | None = None
    found: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)
    unscored: dict[str, int] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For JSON, without the pictures."""
        return {name: value for name, value in asdict(self).items() if name != "pictures"}


def check_page(site: Site, page: str, part: str, cases: Sequence[CheckedCase], most: int, worth: Worth) -> PageReport:
    """Execute the reference plans of the first `most` cases and the plans of the floor; pictures are of the first plan."""
    report = PageReport(page, part, len(cases))
    chosen = cases[:most]
    plans = [parse(case.plan) for case in chosen]
    first = _pictured(site, page, plans[0], report)
    outcomes = [first, *site.run_all(page, plans[1:])]
    scores = []
    for case, plan, outcome in zip(chosen, plans, outcomes, strict=True):
        if isinstance(outcome, Unscored):
            _count(report.unscored, str(outcome))
            continue
        score = worth(case.values, plan, outcome)
        scores.append(score)
        _explain(report, case, plan, outcome, score)
    report.checked = len(scores)
    if scores:
        report.mean, report.lowest = sum(scores) / len(scores), min(scores)
        _floor(site, page, chosen[0], cases, worth, report)
    return report


def _pictured(site: Site, page: str, plan: Plan, report: PageReport) -> SiteOutcome | Unscored:
    async def after(tab: Any, number: int, executed: bool | None) -> None:
        if executed is None or number == len(plan.steps) - 1:
            report.pictures = [
                *(report.pictures[:1] if executed is not None else []),
                await tab.screenshot(full_page=True),
            ]

    return site.watch(page, plan, after)


def _floor(
    site: Site, page: str, case: CheckedCase, cases: Sequence[CheckedCase], worth: Worth, report: PageReport
) -> None:
    other = next((one for one in cases if one.values != case.values), None)
    plans = [SENT_AS_IT_COMES, *([parse(other.plan)] if other is not None else [])]
    earned = [
        None if isinstance(outcome, Unscored) else worth(case.values, plan, outcome)
        for plan, outcome in zip(plans, site.run_all(page, plans), strict=True)
    ]
    report.as_it_comes = earned[0]
    report.other_case = earned[1] if other is not None else None


def _explain(report: PageReport, case: CheckedCase, plan: Plan, outcome: SiteOutcome, score: float) -> None:
    for note in outcome.notes:
        _count(report.notes, note)
    for what, count in outcome.incidents.items():
        report.incidents[what] = report.incidents.get(what, 0) + count
    missed_labels = {plan.steps[number].label for number in outcome.misses}
    for label in case.values:
        if label not in missed_labels:
            report.found.setdefault(label, "found")
    if score > 1 - 1e-9:
        return
    for number, reason in outcome.misses.items():
        if plan.steps[number].label:
            report.found[plan.steps[number].label] = reason
        _count(report.reasons, reason)
    if outcome.why and outcome.submitted is not None:
        _count(report.reasons, outcome.why)
    if outcome.submitted is not None:
        shares = accuracies(case.values, outcome.submitted, outcome.controls)
        for label in (label for label, share in shares.items() if share < 1 and label not in missed_labels):
            _count(report.reasons, f"{label!r} was not sent as the case says")


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


# ---------------------------------------------------------------------- as a page


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("relgrad.environments.sites", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_html(name: str, reports: Sequence[PageReport]) -> str:
    """All pages with their pictures in one file that needs nothing else."""
    pictures = [[base64.b64encode(picture).decode("ascii") for picture in report.pictures] for report in reports]
    return str(
        _environment().get_template("check.html.j2").render(name=name, pages=list(zip(reports, pictures, strict=True)))
    )
