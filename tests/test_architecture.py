"""Who imports whom: the rooms of relgrad and the walls between them, read from the source with `ast`.

types <- protocols <- advantages, losses, divergences, laws, metrics.statistics    pure floor
                   <- text <- models <- policies, rewards, tasks, judges, search   leaves
                   <- forms <- rewards, tasks
                   <- policies <- baselines
                   <- train, sft, evaluate                                         loops
                   <- run <- cli                                                   composition root
rundir, diagnose <- report                                                         island without torch
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import relgrad

SOURCE = Path(relgrad.__file__).parent

FLOOR = ("types", "protocols", "advantages", "losses", "divergences", "laws", "metrics.statistics")
FLOOR_LIBRARIES = {"torch", "numpy", "scipy"}
PURE_STDLIB = {
    "__future__", "abc", "bisect", "collections", "contextlib", "dataclasses", "enum", "fractions", "functools",
    "itertools", "math", "operator", "typing", "warnings",
}  # fmt: skip
PATH_ONLY_IN_SIGNATURES = {"protocols"}

SETTINGS = ("settings",)
LEAVES = ("policies", "rewards", "tasks", "judges", "search", "models", "text", "forms", "baselines")
MAY_ALSO_USE = {
    "policies": ("models", "text"),
    "judges": ("models", "text", "metrics"),
    "rewards": ("models", "text", "forms", "config", "registry"),
    "tasks": ("text", "forms", "config", "registry"),
    "models": ("text",),
    "baselines": ("policies", "models"),
}
LOOPS = ("train", "sft", "evaluate", "batch", "optimizer", "randomness", "checkpoint")
SERVICES = ("tracking", "console", "animate", "environment", "doctor", "metrics")
ROOT = ("run", "using", "parts", "films", "masked_data", "forms_cli", "cli", "config", "registry", "seed_names")
ISLAND = ("report", "rundir", "diagnose")


def name_of(path: Path) -> str:
    """`laws/categorical.py` -> "laws.categorical", `report/__init__.py` -> "report"."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"}


def inside(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def modules_in(*rooms: str) -> list[str]:
    return [name for name in MODULES if inside(name, *rooms)]


def imports(name: str) -> Iterator[str]:
    """Absolute dotted names of everything a module imports, also inside its functions."""
    path = MODULES[name]
    package = ["relgrad", *name.split(".")]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module


def is_module(dotted: str) -> bool:
    return dotted.removeprefix("relgrad.") in MODULES


def own(name: str) -> set[str]:
    """The relgrad modules a module imports, without the prefix; the bare package is ""."""
    return {i.removeprefix("relgrad").lstrip(".") for i in imports(name) if inside(i, "relgrad")}


def foreign(name: str) -> set[str]:
    """The top-level packages outside relgrad that a module imports."""
    return {i.partition(".")[0] for i in imports(name) if not inside(i, "relgrad")}


def test_the_reader_of_imports_sees_what_is_there() -> None:
    assert {"types", "divergences", "protocols"} >= own("losses") >= {"divergences", "protocols"}
    assert {"torch", "dataclasses"} <= foreign("losses")
    assert "yaml" in foreign("config")
    assert "torch" in foreign("doctor"), "imports inside functions count"


@pytest.mark.parametrize("name", modules_in(*FLOOR))
def test_the_pure_floor_stands_on_itself_and_does_no_io(name: str) -> None:
    allowed = PURE_STDLIB | FLOOR_LIBRARIES | ({"pathlib"} if name in PATH_ONLY_IN_SIGNATURES else set())
    assert foreign(name) <= allowed
    assert [i for i in own(name) if not inside(i, *FLOOR)] == []


@pytest.mark.parametrize("name", modules_in(*FLOOR))
def test_the_pure_floor_opens_no_file_and_draws_no_global_randomness(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert called.isdisjoint({"open", "print", "input"})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            random = node.func.attr in {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}
            assert not random or any(k.arg == "generator" for k in node.keywords), f"line {node.lineno}: no generator"


@pytest.mark.parametrize("name", modules_in(*LEAVES))
def test_leaves_know_neither_other_rooms_nor_the_loops(name: str) -> None:
    room = name.partition(".")[0]
    allowed = (room, *FLOOR, *SETTINGS, *MAY_ALSO_USE.get(room, ()))
    assert [i for i in own(name) if i and not inside(i, *allowed)] == []


@pytest.mark.parametrize("name", modules_in(*LOOPS))
def test_loops_name_no_policy_reward_or_task(name: str) -> None:
    assert [
        i for i in own(name) if i and not inside(i, *FLOOR, *SETTINGS, *LOOPS, "metrics", "rundir", "diagnose")
    ] == []


@pytest.mark.parametrize("name", modules_in(*ISLAND))
def test_the_island_reads_files_without_torch_or_the_rest(name: str) -> None:
    assert foreign(name).isdisjoint({"torch", "transformers", "peft"})
    assert [i for i in own(name) if i and not inside(i, *ISLAND)] == []


@pytest.mark.parametrize("name", modules_in(*SERVICES, *SETTINGS))
def test_services_know_no_room_and_no_loop(name: str) -> None:
    assert [i for i in own(name) if i and not inside(i, *FLOOR, *SERVICES, *SETTINGS, "rundir")] == []


@pytest.mark.parametrize("name", list(MODULES))
def test_nothing_below_the_composition_root_imports_it(name: str) -> None:
    if not inside(name, *ROOT):
        assert [
            i for i in own(name) if inside(i, "run", "using", "parts", "films", "masked_data", "forms_cli", "cli")
        ] == []


@pytest.mark.parametrize("name", list(MODULES))
def test_every_module_has_its_room(name: str) -> None:
    rooms = (*FLOOR, *SETTINGS, *LEAVES, *LOOPS, *SERVICES, *ROOT, *ISLAND)
    assert inside(name, *rooms), f"{name}: add it to one of the rooms at the top of this file"


HEAVY = {"torch", "transformers", "peft", "datasets", "gguf", "tensorboard", "wandb", "trackio", "rich", "plotly"}


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


def test_import_relgrad_is_light() -> None:
    loaded = loaded_by("import relgrad")
    assert "relgrad" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_command_line_starts_without_torch() -> None:
    assert loaded_by("import relgrad.commands.cli").isdisjoint(HEAVY - {"rich"})


@pytest.mark.parametrize("module", ["relgrad.monitor.report", "relgrad.monitor.diagnose", "relgrad.core.run_folder"])
def test_the_island_loads_no_torch(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint({"torch", "transformers"})


def test_trackers_load_no_library_before_they_are_asked_for() -> None:
    assert loaded_by("import relgrad.runs.tracking").isdisjoint({"tensorboard", "wandb", "trackio", "transformers"})
