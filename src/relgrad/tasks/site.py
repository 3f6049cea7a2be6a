"""Pages of a site that somebody else wrote, to fill in: the prompt tells what to enter, the answer is a plan.

See environments/sites. Cases say which page and what to enter; prompts and reference plans are made from them, or read from their
columns. Pages, or cases, are held out by a hash of themselves, so they stay held out whatever is added later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

import relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.settings import NamesFiles
from relgrad.core.types import Prompt
from relgrad.environments.sites.cases import CLICK, Case, read_cases
from relgrad.environments.sites.serving import server_of
from relgrad.environments.sites.spec import SiteSettings
from relgrad.environments.sites.telling import Language, Wording, prompt, reference, require_template
from relgrad.tasks import Task

Part = Literal["train", "validation", "test"]


class Settings(SiteSettings):
    """A site, its cases, how they are told, and which are held out."""

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
    split: Literal["page", "case"] = Field(
        "page", description="what is held out: whole pages, or cases of pages that are trained on too"
    )
    validation_pages: tuple[str, ...] = Field((), description="paths of pages to validate by; empty: a share by hash")
    test_pages: tuple[str, ...] = Field((), description="paths of pages to test by; empty: a share by hash")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share that is kept to validate by, where no pages are named"
    )
    test_fraction: float = Field(0.1, ge=0, lt=1, description="share that is kept to test by, where no pages are named")

    @field_validator("cases", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _legal_split(self) -> Settings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on; together they must be less than 1"
            )
        if self.split == "case" and (self.validation_pages or self.test_pages):
            raise ValueError("split: case holds out cases; name validation_pages and test_pages with split: page alone")
        if both := set(self.validation_pages) & set(self.test_pages):
            raise ValueError(f"{min(both)!r} is both to validate and to test by; name it once")
        return self


def load(settings: Settings, seed: int) -> Task:
    """Columns: `plan` (the reference plan), `site`, `page`, `values`, and those of the cases.

    What is held out depends on pages and cases alone, never on `seed`. The server is started here, so that one that does not start
    ends a run before it begins. Raises RelgradError for that, and for cases that are none.
    """
    cases = all_cases(settings)
    parts: dict[Part, list[Prompt]] = {"train": [], "validation": [], "test": []}
    for number, case in enumerate(cases):
        parts[part_of(case, settings)].append(_prompt(case, number, settings))
    _require(parts, settings, {case.page for case in cases})
    server_of(settings.key).require()
    return Task(
        "site", parts["train"], parts["validation"], parts["test"] or None, facts={"Held out": _facts(parts, settings)}
    )


def all_cases(settings: Settings) -> list[Case]:
    """The cases of the settings. Raises RelgradError."""
    if settings.template is not None:
        require_template(settings.template)
    folder = str(Path(relgrad.__file__).parent)
    return read_cases([pattern.replace("{relgrad}", folder) for pattern in settings.cases], settings.pages)


def part_of(case: Case, settings: Settings) -> Part:
    """Which part a case belongs to, for ever."""
    path = case.page.partition("?")[0]
    if settings.validation_pages or settings.test_pages:
        if path in settings.test_pages:
            return "test"
        if path in settings.validation_pages:
            return "validation"
    named: dict[Part, bool] = {"test": bool(settings.test_pages), "validation": bool(settings.validation_pages)}
    key = path if settings.split == "page" else f"{path} {json.dumps(dict(case.values), sort_keys=True)}"
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    if not named["test"] and place < settings.test_fraction:
        return "test"
    if (
        not named["validation"]
        and settings.test_fraction <= place < settings.test_fraction + settings.validation_fraction
    ):
        return "validation"
    return "train"


def _prompt(case: Case, number: int, settings: Settings) -> Prompt:
    text, plan = _prompt_and_plan(case, settings)
    own = {"plan": plan, "site": settings.plain(), "page": case.page, "values": _plain(case)}
    return Prompt(text, {**case.columns, **own}, number, case.page.partition("?")[0])


def row(case: Case, settings: Settings) -> dict[str, Any]:
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


def _prompt_and_plan(case: Case, settings: Settings) -> tuple[str, str]:
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


def _require(parts: dict[Part, list[Prompt]], settings: Settings, pages: set[str]) -> None:
    paths = {page.partition("?")[0] for page in pages}
    for name in (*settings.validation_pages, *settings.test_pages):
        if name not in paths:
            raise RelgradError(f"site: no case is of the held-out page {name!r}; pages are {', '.join(sorted(paths))}")
    for part, share in (("validation", settings.validation_fraction), ("test", settings.test_fraction)):
        if not parts[part] and share:  # type: ignore[index]
            raise RelgradError(
                f"site: of {len(paths)} pages the hash puts none into {part}; name some as {part}_pages, set {part}_fraction "
                "higher, or to 0 for none"
            )


def _facts(parts: dict[Part, list[Prompt]], settings: Settings) -> str:
    counts = ", ".join(f"{part} {len(prompts)}" for part, prompts in parts.items())
    pages = {part: len({prompt.family for prompt in prompts}) for part, prompts in parts.items()}
    if settings.split == "case":
        return f"cases ({counts}); held-out cases are of pages that were trained on"
    return f"pages ({', '.join(f'{part} {count}' for part, count in pages.items())}); cases: {counts}"
