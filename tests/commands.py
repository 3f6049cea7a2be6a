"""The command line as a user has it: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from relgrad.commands.cli import app


def relgrad(*arguments: object) -> str:
    """What a command prints that ends well."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    return result.stdout


def relgrad_process(*arguments: object, timeout: float = 900) -> str:
    """The same, in a process of its own."""
    command = [sys.executable, "-c", "from relgrad.commands.cli import main; main()", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "COLUMNS": "200"}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    return result.stdout


def lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
