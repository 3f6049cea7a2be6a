"""Programs that a model wrote, run as Python in the sandbox: what they print is their output."""

from __future__ import annotations

import asyncio

from relgrad.environments.sandbox.limits import SandboxSettings
from relgrad.environments.sandbox.run import Job, Sandbox

ENTRY = "nothing_more"
AFTER = f"\n\n\ndef {ENTRY}():\n    return None\n"
"""The sandbox calls a function when a program's text was executed: all that such a program does is in its text."""


class Sandboxed:
    """See operators.Runner. Raises RelgradError where this machine cannot contain generated code."""

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self.sandbox = Sandbox(settings or SandboxSettings(seconds=10.0), "search.programs")

    async def run(self, program: str) -> str | None:
        outcome = await asyncio.to_thread(self.sandbox.run, Job(program + AFTER, entry=ENTRY))
        return None if outcome.error is not None else outcome.printed
