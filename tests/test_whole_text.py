"""Text that a file can hold, and what becomes of text that none can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from relgrad.core.run_folder import RunDir
from relgrad.core.whole_text import half_character

HALF = "half \ud83d of it"


@pytest.mark.parametrize("value", [HALF, [HALF], ("a", {"b": [HALF]}), {HALF: 1}, "\udcff", "\udc00\ud800"])
def test_half_a_character_is_found_however_deep(value: Any):
    assert "half a character" in str(half_character(value))


@pytest.mark.parametrize("value", ["", "😀", ["é", {"a": None}], 7, None, {"a": 1.5, "b": True}])
def test_everything_else_is_whole(value: Any):
    assert half_character(value) is None


def test_what_only_people_read_cannot_end_a_run(tmp_path: Path):
    """A reward's reason, say, with half a character in it: JSON has an escape for it, and reads it back."""
    run = RunDir(tmp_path)
    run.write_samples(3, [{"why": HALF}])
    run.append("films.jsonl", {"prompt": HALF})
    run.write_json("environment.json", {"command": HALF})
    run.write_text("report.html", f"<p>{HALF}</p>")
    assert list(run.samples()) == [(3, [{"why": HALF}])]
    assert run.lines("films.jsonl") == [{"prompt": HALF}]
    assert json.loads((tmp_path / "environment.json").read_text(encoding="utf-8")) == {"command": HALF}
