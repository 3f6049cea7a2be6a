"""Pages of a site that somebody else wrote, to fill in: the prompt tells what to enter, the answer is a plan.

See environments/sites. Cases say which page and what to enter; prompts and reference plans are made from them, or read from their
columns. Pages, or cases, are held out by a hash of themselves, so they stay held out whatever is added later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.environments.sites.cases import Case
from relgrad.environments.sites.serving import server_of
from relgrad.tasks import Task
from relgrad.tasks._site_cases import Part, ToldSite, all_cases, in_turn, part_by_hash, prompt_of, row


class Settings(ToldSite):
    """A site, its cases, how they are told, and which are held out."""

    split: Literal["page", "case"] = Field(
        "page", description="what is held out: whole pages, or cases of pages that are trained on too"
    )
    validation_pages: tuple[str, ...] = Field((), description="paths of pages to validate by; empty: a share by hash")
    test_pages: tuple[str, ...] = Field((), description="paths of pages to test by; empty: a share by hash")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share that is kept to validate by, where no pages are named"
    )
    test_fraction: float = Field(0.1, ge=0, lt=1, description="share that is kept to test by, where no pages are named")

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
    parts = parted(settings)
    _require(parts, settings, {prompt.columns["page"] for prompts in parts.values() for prompt in prompts})
    server_of(settings.key).require()
    held_out = {"Held out": _facts(parts, settings)}
    return Task("site", parts["train"], in_turn(parts["validation"]), in_turn(parts["test"]) or None, facts=held_out)


def parted(settings: Settings) -> dict[Part, list[Prompt]]:
    """The prompts of every part, of which some may be empty. Raises RelgradError for cases that are none."""
    parts: dict[Part, list[Prompt]] = {"train": [], "validation": [], "test": []}
    for number, case in enumerate(all_cases(settings)):
        parts[part_of(case, settings)].append(prompt_of(case, number, settings))
    return parts


def part_of(case: Case, settings: Settings) -> Part:
    """Which part a case belongs to, for ever."""
    path = case.page.partition("?")[0]
    if path in settings.test_pages:
        return "test"
    if path in settings.validation_pages:
        return "validation"
    key = path if settings.split == "page" else f"{path} {json.dumps(dict(case.values), sort_keys=True)}"
    part = part_by_hash(key, settings.test_fraction, settings.validation_fraction)
    named = {"test": settings.test_pages, "validation": settings.validation_pages}
    return "train" if named.get(part) else part


def rows(settings: Settings) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Every case and its part, as OpenBrowser's JSONL has it. Raises RelgradError."""
    for case in all_cases(settings):
        yield part_of(case, settings), row(case, settings)


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
