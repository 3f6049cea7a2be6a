"""What came of a plan on a page of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relgrad.environments.forms.outcome import Entry
from relgrad.environments.sites.controls import Control


@dataclass(frozen=True)
class SiteOutcome:
    """`submitted`: everything that was sent, in its order, None where nothing was. `executed`: one per step.

    why        why it is no success, "" where it is one
    misses     why a step did not execute, by its number
    notes      every value that was converted or that the page rewrote, and labels that were found by more than their exact text
    controls   all that could be used while the plan was executed
    incidents  what was refused or closed: requests by their host, popups, downloads; and dialogs that were confirmed
    """

    success: bool
    submitted: tuple[Entry, ...] | None
    executed: tuple[bool, ...]
    why: str = ""
    misses: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    controls: tuple[Control, ...] = ()
    incidents: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the steps that executed; 0 for a plan without steps."""
        return sum(self.executed) / len(self.executed) if self.executed else 0.0
