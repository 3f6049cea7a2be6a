"""The one error that is written for the person at the keyboard. Standard library only."""

from __future__ import annotations


class RelgradError(Exception):
    """An error whose message says what was received, what is allowed and how to fix it; the CLI prints it bare."""
