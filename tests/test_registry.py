"""Kinds that are written wrongly: one clear error each, in every room and wherever a recipe names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.runs.build import resolve
from relgrad.runs.recipe import parse_recipe

STRANGE = [
    "../x", "..", ".", ".x", "x.", "", " ", "a/b", "/etc", "x..y", "../x.py", "~/x.py", "x\0.py", "x" * 300 + ".py",
    "os.path", "__init__", "_calling", "no.such.module", "..relgrad.rewards", "/", ".py",
]  # fmt: skip


@pytest.mark.parametrize("room", [*registry.ROOMS, "losses"])
def test_every_room_refuses_what_is_no_kind_of_it(room: str) -> None:
    for kind in (
        STRANGE if room != "stages" else set(STRANGE) - {"os.path"}
    ):  # a stage's module is looked at by stages/kind.py
        with pytest.raises(RelgradError, match=r"^(\w+: |grpo\.loss=)"):
            registry.find(room, kind)


def recipe(**changes: Any) -> dict[str, Any]:
    parts = {
        "policy": {"kind": "autoregressive", "model": "tiny"},
        "task": {"kind": "digits"},
        "rewards": [{"kind": "exact"}],
    }
    return {"name": "x", **parts, **changes}


@pytest.mark.parametrize("kind", ["../x", "os.path", "broken.py", "empty.py"])
def test_every_place_of_a_recipe_refuses_what_is_no_kind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "empty.py").write_text("")
    reward = {"kind": kind}
    for changes in (
        {"policy": reward},
        {"task": reward},
        {"rewards": [reward]},
        {"evaluation": {"rewards": [reward]}},
        {"stage": kind},
        {"stage": "judge", "judge": reward, "rewards": []},
    ):
        with pytest.raises(RelgradError) as refused:
            resolve(parse_recipe(recipe(**changes)))
        assert repr(kind) in str(refused.value)
        assert kind != "broken.py" or "broken.py, line 1" in str(refused.value)
    with pytest.raises(RelgradError, match=r"loss='\.\./x': give a \.py file or an importable module"):
        parse_recipe(recipe(grpo={"loss": "../x"}))
