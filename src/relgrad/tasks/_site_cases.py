"""What the tasks `site` and `sites` share: a site's cases, how they are told, and the prompts made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

import relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles
from relgrad.core.types import Prompt
from relgrad.environments.sites.cases import CLICK, Case, read_cases
from relgrad.environments.sites.spec import SiteSettings
from relgrad.environments.sites.telling import Language, Wording, prompt, reference, require_template

Part = Literal["train", "validation", "test"]


class ToldSite(SiteSettings):
    """A site, its cases, and how they are told."""

    cases: Annotated[tuple[str, ...], NamesFiles(patterns=True)] = Field(
        min_length=1, description="files of cases, .json or .jsonl; * and ** stand for names; {relgrad}: its folder"
    )
    pages: dict[str, str] = Field(
        {}, description="path of the page by the name of its file of cases, for files that have no `page`"
    )
    plans: Language = Field("lines", description="the language of reference plans; both are understood")
    wording: Wording = Field("long", description="how a case is told")
    template: str | None = Field(
        None, description="the prompt in your own words, with {url}, {page}, {form} and {fields}"
    )
    prompt_column: str | None = Field(
        None, description="column of the cases that has the prompt; null: made from the case"
    )
    plan_column: str | None = Field(
        None, description="column of the cases that has the reference plan; null: made from the case"
    )

    @field_validator("cases", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def all_cases(settings: ToldSite) -> list[Case]:
    """The cases of the settings. Raises RelgradError."""
    if settings.template is not None:
        require_template(settings.template)
    folder = str(Path(relgrad.__file__).parent)
    return read_cases([pattern.replace("{relgrad}", folder) for pattern in settings.cases], settings.pages)


def part_by_hash(key: str, test_fraction: float, validation_fraction: float) -> Part:
    """Which part something belongs to by its name alone, so that it stays there whatever is added later."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One of every page, then the next of every page, ...: so an evaluation of the first few has all pages."""
    by_page: dict[str, list[Prompt]] = {}
    for one in prompts:
        by_page.setdefault(one.family, []).append(one)
    return [one for turn in zip_longest(*by_page.values()) for one in turn if one is not None]


def prompt_of(case: Case, number: int, settings: ToldSite, site: str = "") -> Prompt:
    """Columns: `plan` (the reference plan), `site`, `page`, `values`, and those of the case. Its family is its page.

    site   the site's name, before the page in the family, where a task has several
    """
    text, plan = _prompt_and_plan(case, settings)
    own = {"plan": plan, "site": settings.plain(), "page": case.page, "values": _plain(case)}
    return Prompt(text, {**case.columns, **own}, number, site + case.page.partition("?")[0])


def row(case: Case, settings: ToldSite) -> dict[str, Any]:
    """A case as OpenBrowser's JSONL has it. Raises RelgradError where a column that is to be read is missing."""
    text, plan = _prompt_and_plan(case, settings)
    return {
        "condition": text,
        "target": plan.split("\n"),
        "url": shown_url(case, settings),
        "ground_truth_fields": {label: CLICK if label in case.clicks else _plain(case)[label] for label in case.order},
        "num_steps": len(plan.split("\n")),
    }


def _plain(case: Case) -> dict[str, Any]:
    """What to enter, as JSON has it."""
    return {label: list(value) if isinstance(value, tuple) else value for label, value in case.values.items()}


def _prompt_and_plan(case: Case, settings: ToldSite) -> tuple[str, str]:
    """(prompt, reference plan). Raises RelgradError where a column that is to be read is missing."""
    url = shown_url(case, settings)
    text = prompt(case, url, settings.wording, settings.template)
    plan = reference(case, url, settings.plans)
    if "condition" in case.columns and settings.prompt_column is None and settings.template is None:
        text = case.columns["condition"]
    if "target" in case.columns and settings.plan_column is None:
        plan = _text(case.columns["target"])
    if settings.prompt_column is not None:
        text = _column(case, settings.prompt_column)
    if settings.plan_column is not None:
        plan = _column(case, settings.plan_column)
    return text, plan


def shown_url(case: Case, settings: SiteSettings) -> str:
    """The page's address as prompts tell it: the same in every run, so without a port that is chosen anew."""
    origin = "http://127.0.0.1" if settings.url is None else settings.url.replace(":{port}", "").rstrip("/")
    return origin + case.page


def _column(case: Case, name: str) -> str:
    if name not in case.columns:
        raise RelgradError(
            f"site: {case.origin} has no column {name!r}; it has {', '.join(map(repr, case.columns)) or 'none'}"
        )
    return _text(case.columns[name])


def _text(value: Any) -> str:
    """A text, or several lines of one."""
    return "\n".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
