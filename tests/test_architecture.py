"""Who may import whom: the rooms of relgrad and the walls between them, read from the source with `ast`.

    core ← objectives ← laws                                     pure floor
    laws ← the world of list programs ← policies                 what a policy's decisions do, where a policy has to know
    core ← tree search over decisions ← training, evaluation     asks a policy by protocol
         ← text ← networks ← trajectories, estimators, estimates ← policies
         ← environments ← rewards, tasks
         ← backends; what one is, environments know too
         ← judges ← rewards
         ← training, evaluation ← stages ← runs ← commands ← python
    core ← launch                                                job files and what became of them; no torch
    core ← monitor                                               files in, words and pictures out; no torch

A room may use what stands left of it, and nothing else: not by itself, and not by way of what it uses (`reached`). No two files
import each other, directly or around a circle. Imports inside functions count; those for type checking alone do not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import relgrad
from relgrad.core import registry

SOURCE = Path(relgrad.__file__).parent

FLOOR = ("core", "objectives", "laws")
NETWORKS = (*FLOOR, "text", "networks")
WORLD = "environments.lists"
"""What list programs do: a policy that writes them sees it between its decisions."""
DECISIONS = "search.decisions"
"""The search that training and evaluation use."""
POLICIES = (*NETWORKS, "trajectories", "estimators", "estimates", "policies", WORLD)
PURE_FIGURES = ("evaluation.statistics", "evaluation.calibration")
"""Figures of numbers alone, which judges use too."""
JUDGES = (*NETWORKS, "judges", *PURE_FIGURES)
BACKEND = ("backends.protocol", "backends.scripted")
"""What a back end is, and the error rates of the one whose best workflow is known."""
WORKFLOWS = ("environments.workflows", "environments.sandbox", "environments.benchmarks.numbers")
"""Workflows, what runs them, and what compares their answers as numbers."""
SERVERS = ("backends.completions", "backends.pace", "backends.reading")
"""Servers that write completions of training."""
LOOPS = (*FLOOR, "training", "evaluation", DECISIONS)

MAY_REACH: dict[str, tuple[str, ...]] = {
    "core": ("core",),
    "objectives": ("core", "objectives"),
    "laws": FLOOR,
    "text": (*FLOOR, "text"),
    "networks": NETWORKS,
    "trajectories": (*NETWORKS, "trajectories"),
    "estimators": (*NETWORKS, "trajectories", "estimators"),
    "policies": POLICIES,
    "backends": (*POLICIES, "backends"),
    "environments": (*FLOOR, "environments", *BACKEND),
    "judges": JUDGES,
    "rewards": (*JUDGES, "environments", *BACKEND, "rewards", "judges.network"),
    "tasks": (*NETWORKS, "environments", *BACKEND, "tasks"),
    "baselines": (*POLICIES, "baselines"),
    "search": (*FLOOR, *BACKEND, *WORKFLOWS, "search"),
    "training": LOOPS,
    "evaluation": (*FLOOR, "evaluation", DECISIONS),
    "estimates": ("core.errors", "estimates"),
    "launch": ("core.errors", "core.run_folder", "core.secrets", "launch"),
    "monitor": ("core.errors", "core.registry", "core.run_folder", "core.secrets", "monitor"),
    "stages": (*LOOPS, *JUDGES, *SERVERS, "estimates", "environments", "rewards", "tasks", "stages"),
    "runs": (
        *LOOPS,
        *JUDGES,
        "estimates",
        "environments",
        "backends",
        "search",
        "rewards",
        "tasks",
        "stages",
        "monitor",
        "runs",
    ),
    "commands": ("",),
    "python": ("",),
}
"""What every room may finally reach, itself included; "" is everything."""

SIBLINGS = ("policies", "rewards", "tasks", "judges", "backends")
"""Rooms of kinds: a kind knows no other kind of its room, only what the room shares."""
SHARED = {
    "policies": (),
    "rewards": ("rewards.combine",),
    "tasks": ("tasks",),
    "judges": ("judges.network",),
    "backends": ("backends.protocol", "backends.pace", "backends.reading"),
}

FLOOR_LIBRARIES = {"torch", "numpy", "scipy"}
CORE_ALSO = {"pydantic"}
"""Settings are models of pydantic; it brings in no model, no tracker and no network."""


def name_of(path: Path) -> str:
    """`laws/categorical.py` -> "laws.categorical", `monitor/report/__init__.py` -> "monitor.report"."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.parent != SOURCE and "recipes" not in path.parts
}


def inside(name: str, *rooms: str) -> bool:
    return any(room == "" or name == room or name.startswith(room + ".") for room in rooms)


def room_of(name: str) -> str:
    return name.partition(".")[0]


def for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not for_type_checking(node):
            yield node
            yield from statements(node)


@cache
def imports(name: str) -> frozenset[str]:
    """Absolute dotted names of everything a module imports, also inside its functions."""
    found = set[str]()
    path = MODULES[name]
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix("relgrad.") in MODULES else str(node.module))
    return frozenset(found)


@cache
def own(name: str) -> frozenset[str]:
    """The relgrad modules a module imports, without the prefix; the bare package is left out."""
    dotted = {i.removeprefix("relgrad.") for i in imports(name) if i.startswith("relgrad.")}
    assert dotted <= MODULES.keys(), f"{name} imports {dotted - MODULES.keys()}"
    return frozenset(dotted)


@cache
def foreign(name: str) -> frozenset[str]:
    """The top-level packages outside relgrad that a module imports."""
    return frozenset(i.partition(".")[0] for i in imports(name) if not inside(i, "relgrad"))


@cache
def reached(name: str) -> dict[str, tuple[str, ...]]:
    """Every relgrad module that an import of this one finally reaches, with the way there."""
    ways: dict[str, tuple[str, ...]] = {name: (name,)}
    waiting = [name]
    while waiting:
        importer = waiting.pop(0)
        for imported in sorted(own(importer)):
            if imported not in ways:
                ways[imported] = (*ways[importer], imported)
                waiting.append(imported)
    return ways


def circles() -> list[list[str]]:
    """Groups of modules that reach each other."""
    mutual = {frozenset({n for n in reached(name) if name in reached(n)}) for name in MODULES}
    return sorted(sorted(group) for group in mutual if len(group) > 1)


def test_the_reader_of_imports_sees_what_is_there() -> None:
    assert own("objectives.losses") >= {"core.protocols", "objectives.divergences"}
    assert "torch" in foreign("objectives.losses")
    assert "torch" in foreign("commands.doctor"), "imports inside functions count"
    assert "runs.recipe" in own("commands.cli")
    assert "core.types" in reached("runs.run")
    assert reached("commands.cli")["core.errors"][0] == "commands.cli"


def test_every_folder_is_a_room() -> None:
    assert {room_of(name) for name in MODULES} == MAY_REACH.keys()


def test_a_room_reaches_only_what_stands_below_it() -> None:
    beyond = [
        " -> ".join(way)
        for name in MODULES
        for imported, way in reached(name).items()
        if not inside(imported, *MAY_REACH[room_of(name)])
    ]
    assert beyond == []


def test_a_kind_knows_no_other_kind_of_its_room() -> None:
    others = [
        f"{name} -> {imported}"
        for name in MODULES
        if room_of(name) in SIBLINGS and "." in name
        for imported in own(name)
        if room_of(imported) == room_of(name)
        and imported.split(".")[:2] != name.split(".")[:2]
        and imported not in SHARED[room_of(name)]
        and not imported.split(".")[-1].startswith("_")
    ]
    assert others == []


def test_no_files_import_each_other_around_a_circle() -> None:
    assert circles() == []


# ---------------------------------------------------------------------- the pure floor


def test_the_floor_imports_no_library_but_torch_numpy_and_scipy() -> None:
    for name in (name for name in MODULES if inside(name, *FLOOR)):
        libraries = {library for library in foreign(name) if library not in sys.stdlib_module_names}
        assert libraries <= FLOOR_LIBRARIES | (CORE_ALSO if inside(name, "core") else set()), name


def test_pure_functions_do_no_io_and_draw_no_global_randomness() -> None:
    for name in (name for name in MODULES if inside(name, "objectives", "laws", *PURE_FIGURES)):
        libraries = {"os", "pathlib", "io", "json", "random", "subprocess", "socket", "shutil"}
        assert foreign(name).isdisjoint(libraries), name
        require_pure(name)


def require_pure(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input"}, f"{name}, line {node.lineno}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            drawn = node.func.value.id == "torch" and node.func.attr in {
                "rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal",
            }  # fmt: skip
            assert not drawn or any(k.arg == "generator" for k in node.keywords), (
                f"{name}, line {node.lineno}: no generator"
            )


# ---------------------------------------------------------------------- asked for by name


RECEIVERS = {
    "policy",
    "reward",
    "rewards",
    "loop",
    "function",
    "judge",
    "trained",
    "learner",
    "source",
    "backend",
    "task",
}
LIBRARY_MODELS = ("networks", "policies", "judges", "rewards", "baselines")
"""Rooms in which a `model` is a library's, which may have an attribute or not; elsewhere it is a policy or a judge."""


def test_capabilities_are_protocols_not_names() -> None:
    """No `getattr` or `hasattr` with a literal name on a policy, a reward or a loop: they declare what they can do.

    Whether a reward, which is somebody's own function, can be called is asked of Python itself.
    """
    assert list(by_name("__call__")) == []


def by_name(but: str) -> Iterator[str]:
    for name, path in MODULES.items():
        receivers = RECEIVERS if inside(name, *LIBRARY_MODELS) else RECEIVERS | {"model"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
                continue
            attribute, on = node.args[1], ast.unparse(node.args[0]).split(".")[-1]
            literal = isinstance(attribute, ast.Constant) and attribute.value != but
            if node.func.id in ("getattr", "hasattr") and literal and on in receivers:
                yield f"{name}, line {node.lineno}: {ast.unparse(node)}"


# ---------------------------------------------------------------------- in a fresh interpreter


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


def test_the_floor_brings_in_nothing_but_torch_numpy_and_scipy() -> None:
    """Beyond what these libraries bring in themselves, and pydantic with its own for settings."""
    everything = "\n".join(f"import relgrad.{name}" for name in MODULES if inside(name, *FLOOR))
    without = "import torch, torch.distributed, numpy, scipy.stats, pydantic, annotated_types"
    loaded = loaded_by(everything)
    assert loaded - loaded_by(without) <= {"relgrad"} | set(sys.stdlib_module_names)
    assert loaded.isdisjoint(HEAVY - {"torch"})


def test_the_command_line_starts_without_torch() -> None:
    assert loaded_by("import relgrad.commands.cli").isdisjoint(HEAVY - {"rich"})


def test_what_people_see_is_written_without_torch() -> None:
    for name in (n for n in MODULES if inside(n, "monitor", "core.run_folder", "core.errors")):
        assert all("torch" not in foreign(imported) for imported in reached(name)), name


def test_reports_load_no_torch() -> None:
    modules = ("monitor.report", "monitor.diagnose", "monitor.console", "monitor.animate", "core.run_folder")
    assert loaded_by("; ".join(f"import relgrad.{m}" for m in modules)).isdisjoint({"torch", "transformers"})


def test_trackers_load_no_library_before_they_are_asked_for() -> None:
    assert loaded_by("import relgrad.runs.tracking").isdisjoint({"tensorboard", "wandb", "trackio", "transformers"})


def test_built_in_kinds_are_found_without_a_list() -> None:
    for room in registry.ROOMS:
        assert registry.kinds(room), room
