"""The command line as a user has it: in this process, or in one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import forked
from relgrad.commands.cli import app


def relgrad(*arguments: object) -> str:
    """What a command prints that ends well."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    return result.stdout


def relgrad_process(*arguments: object, timeout: float = 900) -> str:
    """The same, in a process of its own."""
    result = forked.run("relgrad", *arguments, environment={"COLUMNS": "200"}, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    return result.stdout


def lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
