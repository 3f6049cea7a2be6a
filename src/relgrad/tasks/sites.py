"""Pages of several sites, of which whole sites are held out: what a policy does on a site that it has never seen.

Each site is served, and its cases are told, as in the task `site`. Sites are held out by name, or by a hash of their names, so they
stay held out whatever is added later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.environments.sites.serving import server_of
from relgrad.tasks import Task
from relgrad.tasks._site_cases import Part, ToldSite, all_cases, in_turn, part_by_hash, prompt_of, row


class Settings(Strict):
    """Sites by their names, and which of them are held out."""

    sites: dict[str, ToldSite] = Field(
        min_length=2, description="name -> how it is served, its cases, how they are told"
    )
    validation_sites: tuple[str, ...] = Field((), description="names of sites to validate by; empty: a share by hash")
    test_sites: tuple[str, ...] = Field((), description="names of sites to test by; empty: a share by hash")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the sites that is kept to validate by, where none are named"
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of the sites that is kept to test by, where none are named"
    )

    @model_validator(mode="after")
    def _legal_split(self) -> Settings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on; together they must be less than 1"
            )
        if odd := next((name for name in self.sites if "/" in name or not name), None):
            raise ValueError(f"{odd!r} is no name of a site; names have no slash")
        for name in (*self.validation_sites, *self.test_sites):
            if name not in self.sites:
                raise ValueError(f"no site is called {name!r}; sites are {', '.join(self.sites)}")
        if both := set(self.validation_sites) & set(self.test_sites):
            raise ValueError(f"{min(both)!r} is both to validate and to test by; name it once")
        return self


def load(settings: Settings, seed: int) -> Task:
    """Columns: `plan` (the reference plan), `site`, `page`, `values`, and those of the cases; a family is a page of a site.

    All servers are started here, so that one that does not start ends a run before it begins. Raises RelgradError for that, for
    cases that are none, and where a part has no site.
    """
    parts = parted(settings)
    members: dict[Part, list[str]] = {"train": [], "validation": [], "test": []}
    for name in settings.sites:
        members[part_of(name, settings)].append(name)
    _require(members, settings)
    for site in settings.sites.values():
        server_of(site.key).require()
    held_out = "; ".join(
        f"{part}: {', '.join(names) or 'none'} ({len(parts[part])} cases)" for part, names in members.items()
    )
    return Task(
        "sites", parts["train"], in_turn(parts["validation"]), in_turn(parts["test"]) or None, facts={"Sites": held_out}
    )


def parted(settings: Settings) -> dict[Part, list[Prompt]]:
    """The prompts of every part, of which some may be empty. Raises RelgradError for cases that are none."""
    parts: dict[Part, list[Prompt]] = {"train": [], "validation": [], "test": []}
    number = 0
    for name, site in settings.sites.items():
        for case in all_cases(site):
            parts[part_of(name, settings)].append(prompt_of(case, number, site, name))
            number += 1
    return parts


def part_of(name: str, settings: Settings) -> Part:
    """Which part a site belongs to, for ever."""
    if name in settings.test_sites:
        return "test"
    if name in settings.validation_sites:
        return "validation"
    part = part_by_hash(name, settings.test_fraction, settings.validation_fraction)
    named = {"test": settings.test_sites, "validation": settings.validation_sites}
    return "train" if named.get(part) else part


def rows(settings: Settings) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Every case and its part, as OpenBrowser's JSONL has it. Raises RelgradError."""
    for name, site in settings.sites.items():
        for case in all_cases(site):
            yield part_of(name, settings), row(case, site)


def _require(members: dict[Part, list[str]], settings: Settings) -> None:
    shares: dict[Part, float] = {
        "train": 1.0, "validation": settings.validation_fraction, "test": settings.test_fraction,
    }  # fmt: skip
    for part, share in shares.items():
        if not members[part] and share:
            fix = (
                "name fewer sites to validate and to test by"
                if part == "train"
                else f"name some as {part}_sites, or set {part}_fraction higher, or to 0 for none"
            )
            raise RelgradError(f"sites: of {len(settings.sites)} sites none is in {part}; {fix}")
