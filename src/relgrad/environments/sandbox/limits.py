"""What a program may use."""

from __future__ import annotations

from pydantic import Field

from relgrad.core.settings import Strict


class Limits(Strict):
    """Limits of one run.

    Its processes have at most processes * memory_mb of memory, and the content of its files disk_mb. What the kernel itself keeps
    of files and folders, however small, is bounded by processor time alone (docs/sandbox.md).
    """

    seconds: float = Field(20.0, gt=0, description="of waiting, without the time that calls to the parent take")
    cpu_seconds: int = Field(10, ge=1, description="of computing, for each process")
    memory_mb: int = Field(
        256, ge=64, description="address space of each process, the interpreter's own 20 MB included"
    )
    processes: int = Field(1, ge=1, description="processes and threads at a time")
    disk_mb: int = Field(8, ge=1, description="of files in /tmp, which is memory and gone afterwards")
    printed_kb: int = Field(64, ge=0, description="of printed text that is kept")
    flood_mb: int = Field(8, ge=1, description="of printed text that ends the program")
    calls: int = Field(100, ge=0, description="calls to the parent")
    message_kb: int = Field(1024, ge=1, description="of one message to the parent: a call, or the value")
    depth: int = Field(
        50, ge=1, description="lists and mappings inside of each other in one message; tuples and sets count twice"
    )


class SandboxSettings(Limits):
    """A section `sandbox` of a recipe."""

    allow_unsafe: bool = Field(
        False, description="execute generated code even where this machine cannot contain it (docs/sandbox.md)"
    )
