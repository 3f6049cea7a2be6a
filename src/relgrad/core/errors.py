"""The one error that is written for the person at the keyboard, and an end that is none. Standard library only."""

from __future__ import annotations


class RelgradError(Exception):
    """An error whose message says what was received, what is allowed and how to fix it; the CLI prints it bare."""


class GateFailed(RelgradError):
    """A run that did all its work and did not reach what its recipe asks for; the CLI ends with an exit code of its own."""


class Stopped(Exception):
    """A run that ended between two steps because a limit was reached: nothing failed, and the same command goes on."""


class ServerFailed(RelgradError):
    """A server that takes part in a run does not do its part. Whatever was trained is as it was: the same command can go on."""


class UnknownModel(ServerFailed):
    """The server has no model, or adapter, of the name."""
