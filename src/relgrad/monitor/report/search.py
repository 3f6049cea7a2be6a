"""The page of a search: its trees to click through, in the report's style. Reads tree.json, writes search.html."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import finite, write_atomic
from relgrad.monitor.report.templates import template

SCRIPTS = ("base.js", "search.js")


def write_page(folder: Path) -> Path:
    """Write the page of the search in this folder; its path. Raises RelgradError where no tree can be read."""
    file = folder / "tree.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RelgradError(f"{file} cannot be read: {error}; the same `relgrad search` writes it again") from None
    path = folder / "search.html"
    write_atomic(path, render(record))
    return path


def render(record: dict[str, Any]) -> str:
    """The HTML text. Jinja escapes every value; scripts run only by their hash."""
    from markupsafe import Markup

    scripts = [_asset(name).replace("\r\n", "\n") for name in SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return template("search.html.j2").render(
        name=record["name"],
        trees=record["trees"],
        payload=finite({"trees": record["trees"]}),
        css=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=" ".join(f"'sha256-{value}'" for value in hashes),
    )


def _asset(name: str) -> str:
    return resources.files("relgrad.monitor.report").joinpath(name).read_text(encoding="utf-8")
