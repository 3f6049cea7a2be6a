"""Programs that a model wrote, run as Python in the sandbox: what they print is their output."""

from __future__ import annotations

import asyncio

from relgrad.backends.protocol import CallFailed
from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Job, Sandbox

RUNNING = """
import sys as _sys

__name__ = "__main__"
_sys.modules["__main__"] = _sys.modules["program"]
exit = quit = _sys.exit

def _run(text, names=globals()):
    try:
        exec(compile(text, "<program>", "exec"), names)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
"""
"""Runs a text as Python runs a file: it is the main module, and may leave with exit code 0."""


class Sandboxed:
    """See operators.Runner. Raises RelgradError where this machine cannot contain generated code."""

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self.sandbox = Sandbox(settings or SandboxSettings(seconds=10.0), "search.programs")

    async def run(self, program: str) -> str | None:
        outcome = await asyncio.to_thread(self.sandbox.run, Job("", {"text": program}, prelude=RUNNING, entry="_run"))
        if outcome.unscored:
            raise CallFailed(f"the sandbox: {outcome.error}: {outcome.message}")
        return None if outcome.error is not None else outcome.printed
