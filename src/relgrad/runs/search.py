"""`relgrad search`: its recipe, its folder, and the search from its parts.

runs/NAME/search.yaml         the recipe; from it the search can be repeated
runs/NAME/calls.jsonl         every call before and after it was made: what a killed search goes on by
runs/NAME/trajectories.jsonl  every edit, with its log-probabilities and executions (search/records.py)
runs/NAME/tree.json           the trees as they stand
runs/NAME/result.json         the best workflow, what it is worth on problems kept for the test, and what was spent
runs/NAME/search.html         the trees, to look at
runs/NAME/prior.json          the learned prior, where there is one
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import field_validator

from relgrad.backends.protocol import Backend, CallFailed
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import derived
from relgrad.core.ranks import ALONE
from relgrad.core.run_folder import RunDir, fault_of_name, require_writable
from relgrad.core.secrets import without_secrets
from relgrad.core.settings import Strict, checked, settings_of
from relgrad.environments.workflows import noisy, sources
from relgrad.environments.workflows.language import Step
from relgrad.environments.workflows.operators import Runner
from relgrad.environments.workflows.problem import Problem
from relgrad.monitor.report.search import write_page
from relgrad.runs.build import find_recipe
from relgrad.runs.lock import held
from relgrad.runs.recipe import assign, is_search
from relgrad.runs.search_test import test
from relgrad.runs.workflows import Execution, build_backend, runner_of, workflow_of
from relgrad.runs.yaml_text import read_yaml, write_yaml
from relgrad.search.budget import Budget
from relgrad.search.journal import Asker, Journal
from relgrad.search.loop import Grower
from relgrad.search.prior import read as read_prior
from relgrad.search.proposals import Grammar, GrammarSettings, Model, ModelSettings, NoReply, Proposer, space_of
from relgrad.search.records import tree_record
from relgrad.search.settings import Search
from relgrad.search.tree import Tree
from relgrad.search.trials import Trials

FILES = ("calls.jsonl", "trajectories.jsonl", "tree.json", "result.json", "search.html", "search.yaml", "prior.json")
FREE = ("budget", "iterations", "concurrency")
"""Settings that a search may go on with other values of."""
Progress = Callable[[str, int, int], None]


class KeptSearch(Strict):
    """Where a search is kept, and what its randomness is derived from."""

    name: str
    seed: int = 0
    out: Path = Path("runs")

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if fault := fault_of_name(name):
            raise ValueError(fault)
        return name

    @property
    def folder(self) -> Path:
        return self.out / self.name


class SearchRecipe(KeptSearch):
    """One search for workflows."""

    search: Search

    @property
    def plain(self) -> dict[str, Any]:
        """All settings as plain data, secrets as references."""
        return self.model_dump(mode="json")


def read_search(name: str, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], str]:
    """A search recipe as plain data, with its overrides, by path or built-in name; and where it was read. Raises RelgradError."""
    path = find_recipe(name)
    raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(raw, dict) or not is_search(raw):
        raise RelgradError(f"{path} describes no search: a recipe of one has a section `search` (docs/workflows.md)")
    data = copy.deepcopy({"name": path.stem, **raw})
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RelgradError(f"override {text!r}: write key.sub=value, for example search.budget.calls=200")
        assign(data, key.strip().split("."), read_yaml(value, f"override {text[:80]!r}"))
    return data, str(path)


def load_search(name: str, overrides: Iterable[str] = ()) -> SearchRecipe:
    """Read a recipe by path or built-in name, with `search.key=value` overrides. Raises RelgradError."""
    data, source = read_search(name, overrides)
    return checked(data, SearchRecipe, source)


def run_search(recipe: SearchRecipe, *, fresh: bool = False, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Search, or go on with a search that was stopped; the record of result.json.

    Raises RelgradError, also where no call can succeed: what was answered until then is kept, and the same command goes on.
    """
    folder = recipe.folder
    require_writable(folder)
    with held([folder], ALONE) as require_held:
        require_no_training(folder)
        if not fresh:
            _require_same(folder, recipe)
        parts = _Parts.of(recipe)
        if fresh:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
        _keep_prior(recipe)
        run = _Run(recipe, parts, RunDir(folder), progress)
        _require_enough(run)
        run.files.write_text("search.yaml", write_yaml(recipe.plain))
        try:
            result = asyncio.run(run.whole())
        finally:
            require_held()
            run.journal.close()
            run.keep()
    return result


def _require_enough(run: _Run) -> None:
    """Raise RelgradError where a limit is narrower than what earlier sessions have spent: nothing true could be said of it."""
    paid, limits = run.journal.paid, run.settings.budget
    for name, limit, used in (
        ("calls", limits.calls, paid.calls),
        ("tokens", limits.tokens, paid.tokens),
        ("money", limits.money, paid.money),
    ):
        if limit is not None and used > limit:
            run.journal.close()
            raise RelgradError(
                f"search.budget.{name}={limit:g}, and this search has spent {used:g} already ({run.files.root}): give at least as "
                "much, another name, or start over with --fresh"
            )


def _keep_prior(recipe: SearchRecipe) -> None:
    """Copy the learned prior into the folder. Raises RelgradError where the search began with another one."""
    if recipe.search.edit_prior is None:
        return
    text, kept = recipe.search.edit_prior.read_text(encoding="utf-8"), recipe.folder / "prior.json"
    if kept.is_file() and kept.read_text(encoding="utf-8") != text:
        raise RelgradError(
            f"{recipe.folder} holds a search with another prior: {recipe.search.edit_prior} has changed. Give this one another "
            "name (name=...), or start over with --fresh"
        )
    RunDir(recipe.folder).write_text("prior.json", text)


def require_no_training(folder: Path) -> None:
    """Raise RelgradError where the folder is of a training run."""
    if any(folder.glob("*/recipe.yaml")):
        raise RelgradError(f"{folder} holds a training run: give the search another name (name=...)")


def _require_same(folder: Path, recipe: SearchRecipe) -> None:
    """Raise RelgradError where the folder holds another search."""
    written = folder / "search.yaml"
    if not written.is_file():
        return
    written_search, present = (
        _compared(plain) for plain in (read_yaml(written.read_text(encoding="utf-8"), str(written)), recipe.plain)
    )
    differing = sorted(key for key in {*written_search, *present} if written_search.get(key) != present.get(key))
    if differing:
        shown = "; ".join(
            f"{key}: {written_search.get(key)!r} there, {present.get(key)!r} now" for key in differing[:3]
        )
        raise RelgradError(
            f"{folder} holds another search ({shown:.300}). Give this one another name (name=...), or start over with --fresh"
        )


def _compared(plain: Mapping[str, Any]) -> dict[str, Any]:
    search = {key: value for key, value in plain["search"].items() if key not in FREE}
    return {"seed": plain["seed"], **without_secrets(search, references=True)}


@dataclass(frozen=True)
class _Parts:
    """What a recipe says, built and checked, before any file of the search is touched.

    held_out  for the test; none where every problem has a workflow of its own
    grammar   who proposes; None: a language model does, with settings `model`, by the back end `ideas` where it has one of its own
    """

    problems: list[Problem]
    held_out: list[Problem]
    starts: list[Step]
    backend: Backend
    runner: Runner
    grammar: Grammar | None
    model: ModelSettings
    ideas: Backend | None

    @staticmethod
    def of(recipe: SearchRecipe) -> _Parts:
        """Raises RelgradError for whatever cannot be."""
        settings, where = recipe.search, "search.proposer"
        problems = sources.load(settings.problems, recipe.seed)
        held_out: list[Problem] = []
        if settings.scope == "dataset":
            problems, held_out = sources.parted(problems, settings.test_share, recipe.seed)
        starts = [workflow_of(text)[0] for text in settings.start]
        backend = build_backend(settings.backend, recipe.seed, "search.backend")
        _require_prices(settings, backend)
        grammar, model, ideas = None, ModelSettings(), None
        if settings.edit_prior is not None and settings.proposer.kind != "grammar":
            raise RelgradError(
                f"search.edit_prior is of edits of the grammar (received proposer {settings.proposer.kind!r})"
            )
        if settings.proposer.kind == "grammar":
            prior = None if settings.edit_prior is None else read_prior(settings.edit_prior)
            grammar = Grammar(space_of(settings_of(settings.proposer, GrammarSettings, where)), prior)
        elif settings.proposer.kind == "model":
            model = checked(settings.proposer.options, ModelSettings, where)
            ideas = None if model.backend is None else build_backend(model.backend, recipe.seed, f"{where}.backend")
        else:
            raise RelgradError(f"{where}: unknown kind {settings.proposer.kind!r}. Known: grammar, model")
        return _Parts(problems, held_out, starts, backend, runner_of(settings.programs), grammar, model, ideas)


class _Run:
    """One session of a search, from its parts."""

    def __init__(self, recipe: SearchRecipe, parts: _Parts, files: RunDir, progress: Progress) -> None:
        self.recipe, self.parts, self.files, self.progress = recipe, parts, files, progress
        self.settings, self.seed = recipe.search, recipe.seed
        self.journal = Journal(files.root / "calls.jsonl")
        self.budget = Budget(self.settings.budget, self.journal.seconds)
        self.budget.charge(self.journal.lost)
        self.asker = Asker(parts.backend, self.journal, self.budget)
        self.ideas = self.asker if parts.ideas is None else Asker(parts.ideas, self.journal, self.budget)
        self.proposer: Proposer = parts.grammar or Model(parts.model, self.ideas.ask, parts.problems)
        self.trees: list[Tree] = []
        self.reasons: list[str] = []
        (files.root / "trajectories.jsonl").unlink(missing_ok=True)

    async def whole(self) -> dict[str, Any]:
        """Grow all trees, test the best workflow, and say what came of it."""
        try:
            everything = self.parts.problems
            trees = [(p.id, [p]) for p in everything] if self.settings.scope == "problem" else [("", everything)]
            for number, (name, problems) in enumerate(trees):
                self.budget.narrow(len(trees) - number, self.journal.why_ended(name, self.settings.budget))
                self.reasons.append(await self._grow(name, problems))
            self.asker.require_an_answer()
            result = await self._result()
        except CallFailed as failure:
            raise RelgradError(
                f"{failure}. What was answered is kept in {self.files.root}; the same command goes on"
            ) from None
        finally:
            for backend in filter(None, (self.parts.backend, self.parts.ideas)):
                await backend.close()
        self.files.write_json("result.json", result)
        return result

    async def _grow(self, name: str, problems: Sequence[Problem]) -> str:
        types = tuple(sorted({problem.type for problem in problems}))
        tree = Tree(name, self.settings.selection.backup, types)
        self.trees.append(tree)
        seed = derived(self.seed, "tree", name)
        trials = Trials(problems, self.settings, self.asker.ask, seed, self.parts.runner)
        grower = Grower(
            self.settings, tree, trials, self.proposer, seed, self.recipe.name, self.settings.proposer.kind,
            lambda line: self.files.append("trajectories.jsonl", line), self._tell,
        )  # fmt: skip
        try:
            reason = await grower.grow(self.parts.starts)
        except NoReply as failure:
            self.ideas.ask_again(failure.requests)
            return str(failure)
        if self.budget.ended is not None:
            self.journal.spent(name, self.budget.ended, self.settings.budget, self.budget.seconds)
        return reason

    def _tell(self, tree: Tree) -> None:
        limit = self.settings.budget.calls or 0
        done = self.budget.spent.calls if limit else len(tree.nodes)
        self.progress(f"searching {tree.name}".rstrip(), done, limit or self.settings.iterations)

    async def _result(self) -> dict[str, Any]:
        errors = self.settings.trials.errors
        spent = self.budget.spent
        bests = [tree.best(errors) for tree in self.trees]
        whole = self.settings.scope == "dataset" and bool(bests[0].values)
        self.progress("testing", spent.calls, spent.calls)
        tested: list[dict[str, Any]] = []
        if whole:
            tested = await test(bests[0], self.parts.held_out, self.settings, self.asker, self.seed, self.parts.runner)
        return {
            "name": self.recipe.name,
            "seed": self.seed,
            "reasons": self.reasons,
            "workflows": sum(len(tree.nodes) for tree in self.trees),
            "best": [_summary_of(tree, best) for tree, best in zip(self.trees, bests, strict=True)],
            "front": [_summary_of(tree, node) for tree in self.trees for node in tree.front()],
            "test": tested,
            "exact": self._exact(),
            "spent": {**spent._asdict(), "tokens": spent.tokens, "seconds": self.budget.seconds},
            "in_flight": {"calls": self.journal.in_flight, "at_worst": self.journal.lost._asdict()},
        }

    def _exact(self) -> dict[str, Any] | None:
        """What the best workflows are worth exactly, and the best of all: where the solver's rates are known."""
        exact = noisy.exact_of(sources.settings_of(self.settings.problems), self.parts.backend)
        if exact is None or self.settings.cost != "money" or not isinstance(self.proposer, Grammar):
            return None
        if self.proposer.space.max_size > noisy.LARGEST_SPACE or not self.trees[0].root.values:
            return None
        price, scores, regrets = self.settings.cost_weight, [], []
        for tree in self.trees:
            kinds = sorted({p.type for p in self.parts.problems if tree.name in ("", p.id)})
            own = exact.score(tree.best(self.settings.trials.errors).step, price, kinds)
            optimum, top = exact.best(self.proposer.space, price, kinds)
            scores.append(own)
            regrets.append(top - own)
        return {"score": sum(scores) / len(scores), "regret": sum(regrets) / len(regrets), "optimum": optimum.text}

    def keep(self) -> None:
        """Write the trees as they stand, and their page."""
        trees = [tree_record(tree, self.settings.trials.errors) for tree in self.trees if tree.nodes]
        record = {"name": self.recipe.name, "settings": without_secrets(self.recipe.plain), "trees": trees}
        self.files.write_json("tree.json", record)
        if trees:
            write_page(self.files.root)


def _summary_of(tree: Tree, node: Any) -> dict[str, Any]:
    figures = {"score": node.mean, "error": node.error, "accuracy": node.accuracy, "cost": node.cost}
    return {"scope": tree.name, "node": node.number, "workflow": node.step.text, **figures, "trials": len(node.values)}


def _require_prices(settings: Search, backend: Backend) -> None:
    """Raise RelgradError where money counts and the back end has no prices."""
    counts = settings.budget.money is not None or (settings.cost == "money" and settings.cost_weight)
    if counts and not backend.priced:
        raise RelgradError(
            "search: money counts here (budget.money, or cost_weight with cost: money), and the back end knows no prices: give "
            "search.backend.prices, or count calls or tokens"
        )


def export(folder: Path, result: Mapping[str, Any], recipe: SearchRecipe, path: Path) -> None:
    """Write the best workflow of a search as a file that `relgrad workflow run` takes. Raises RelgradError where it has several."""
    from relgrad.environments.workflows import file

    best = result["best"]
    if len(best) > 1:
        raise RelgradError(
            f"--export: the search has a workflow for each of {len(best)} problems; {folder}/result.json holds them"
        )
    plain = recipe.plain["search"]
    facts = {key: best[0][key] for key in ("score", "accuracy", "cost", "trials")}
    facts |= {key: plain[key] for key in Execution.model_fields}
    facts |= {"search": str(folder), "seed": recipe.seed, "backend": plain["backend"], "problems": plain["problems"]}
    file.write(path, workflow_of(best[0]["workflow"])[0], facts)
