"""Workflows in files: what a search exports, or just the text of a workflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import write_json
from relgrad.environments.workflows.compiled import python
from relgrad.environments.workflows.language import NoWorkflow, Step, parse


def write(path: Path, step: Step, facts: Mapping[str, Any]) -> None:
    """Write a workflow with what is known of it: its back end, its scores."""
    write_json(path, {"workflow": step.text, "hash": step.hash, **facts, "python": python(step).splitlines()})


def read(path: Path) -> tuple[Step, Mapping[str, Any]]:
    """A workflow and what the file says of it. Raises RelgradError for a file that holds none."""
    if not path.is_file():
        raise RelgradError(f"no workflow file {str(path)!r} (working directory {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8")
        facts = json.loads(text) if text.lstrip().startswith("{") else {"workflow": text}
    except ValueError as error:
        raise RelgradError(f"{path} cannot be read: {error}") from None
    if not isinstance(facts.get("workflow"), str):
        raise RelgradError(
            f"{path} has no `workflow`: `relgrad search --export` writes one, or write its text into a file"
        )
    try:
        return parse(facts["workflow"]), facts
    except NoWorkflow as error:
        raise RelgradError(f"{path}: {error}") from None
