"""`relgrad search` of a recipe whose `search` names a `prior`: tree search of a task's decisions, prompt by prompt.

runs/NAME/search.yaml         the recipe, and what the weights of the prior were
runs/NAME/trajectories.jsonl  a line a prompt, written when its search has ended: what a stopped search goes on by
runs/NAME/result.json         how many were solved within how many evaluations
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from relgrad.core.checksums import of_file
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import GuidesSearch
from relgrad.core.ranks import ALONE
from relgrad.core.run_folder import RunDir, cut_torn_line, read_lines, require_writable
from relgrad.core.settings import Strict, checked
from relgrad.core.types import Prompt
from relgrad.evaluation.searched import first_solution, search_all
from relgrad.evaluation.statistics import mean_over
from relgrad.objectives.advantages import combine
from relgrad.rewards.combine import RewardSet
from relgrad.runs.build import load_task
from relgrad.runs.lock import held
from relgrad.runs.search import KeptSearch, read_search, require_no_training
from relgrad.runs.use import open_source, rewards_of
from relgrad.runs.yaml_text import read_yaml, write_yaml
from relgrad.search.decisions import TreeSettings
from relgrad.stages.kind import build_policy

UNIFORM = "uniform"
FILES = ("search.yaml", "trajectories.jsonl", "result.json")
COUNTS = (16, 64, 200)
"""Evaluations at which results tell how much was solved, as far as the search goes."""


class DecisionSearch(Strict):
    """A search of decisions. Where `prior` is a run or recipe, its task is searched unless `tasks` names another's."""

    prior: str = Field(description="whose policy guides the search: a run's folder, a recipe (untrained), or uniform")
    tasks: str | None = Field(None, description="the run or recipe whose task is searched; null: the prior's own")
    evaluations: int = Field(200, ge=1, description="programs that one search may execute")
    exploration: float = Field(1.5, gt=0, description="weight of the prior in PUCT")
    temperature: float = Field(
        1.8, gt=0, description="the prior is p^(1 / temperature), normalised: above 1 it is flatter"
    )
    noise: float = Field(0.25, ge=0, le=1, description="share of the root's prior that is Dirichlet noise")
    dirichlet: float = Field(0.5, gt=0, description="concentration of the noise; large: uniform")
    part: Literal["validation", "test"] = "test"
    num_prompts: int = Field(120, ge=1)

    @property
    def tree(self) -> TreeSettings:
        return TreeSettings(
            prior="uniform" if self.prior == UNIFORM else "policy",
            exploration=self.exploration,
            temperature=self.temperature,
            noise=self.noise,
            dirichlet=self.dirichlet,
        )


class DecisionRecipe(KeptSearch):
    """One search for decisions."""

    search: DecisionSearch


def names_a_prior(data: Mapping[str, Any]) -> bool:
    """Whether a search recipe is one of decisions."""
    return isinstance(data.get("search"), Mapping) and "prior" in data["search"]


def load_decision_search(name: str, overrides: Sequence[str] = ()) -> DecisionRecipe | None:
    """The recipe, where it is one of decisions; None for a search for workflows. Raises RelgradError."""
    data, source = read_search(name, overrides)
    return checked(data, DecisionRecipe, source) if names_a_prior(data) else None


def run_decision_search(
    recipe: DecisionRecipe, *, fresh: bool = False, progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Search every prompt, or go on with those that are left; the record of result.json. Raises RelgradError."""
    require_writable(recipe.folder)
    policy, prompts, rewards, weights = _parts(recipe.search)
    with held([recipe.folder], ALONE) as require_held:
        require_no_training(recipe.folder)
        files = RunDir(recipe.folder)
        if fresh:
            for name in FILES:
                (recipe.folder / name).unlink(missing_ok=True)
        plain = {**recipe.model_dump(mode="json"), "weights": weights}
        _require_same(recipe.folder, plain)
        files.write_text("search.yaml", write_yaml(plain))
        records = _kept(recipe.folder / "trajectories.jsonl")
        for number, prompt in enumerate(prompts):
            progress("searching", number, len(prompts))
            if prompt.id not in records:
                records[prompt.id] = _searched(policy, prompt, rewards, recipe)
                require_held()
                files.append("trajectories.jsonl", records[prompt.id])
        result = _result(recipe.search, [records[prompt.id] for prompt in prompts])
        files.write_json("result.json", result)
    return result


def _parts(settings: DecisionSearch) -> tuple[GuidesSearch, Sequence[Prompt], RewardSet, dict[str, str]]:
    """The policy, the prompts, what confirms a solution, and checksums of the prior's weights. Raises RelgradError."""
    prior = settings.tasks if settings.prior == UNIFORM else settings.prior
    if prior is None:
        raise RelgradError("search.prior=uniform needs search.tasks: the run or recipe whose task is to be searched")
    stage, start = open_source(prior, [])
    policy = build_policy(stage, start)
    if not isinstance(policy, GuidesSearch):
        raise RelgradError(
            f"search.prior={prior}: a tree search cannot walk with a policy of kind {stage.policy.kind}; use one of kind workflow"
        )
    source = settings.tasks or prior
    of_tasks, from_run = (stage, start) if source == prior else open_source(source, [])
    rewards = rewards_of(of_tasks, from_run)
    if rewards is None:
        raise RelgradError(f"search.tasks={source}: nothing says what is right; add rewards to the recipe")
    task = load_task(of_tasks)
    prompts = (task.test if settings.part == "test" else task.validation)[: settings.num_prompts]
    if not prompts:
        raise RelgradError(f"search.tasks={source}: the task has no {settings.part} prompts")
    files = sorted(start.glob("*.safetensors")) if start is not None and settings.prior != UNIFORM else []
    return policy, prompts, rewards, {file.name: of_file(file)["sha256"] for file in files}


def _require_same(folder: Path, plain: Mapping[str, Any]) -> None:
    """Raise RelgradError where the folder holds another search, or one with other weights."""
    written = folder / "search.yaml"
    if not written.is_file():
        return
    there = read_yaml(written.read_text(encoding="utf-8"), str(written))
    differing = [key for key in ("seed", "search", "weights") if there.get(key) != plain[key]]
    if differing:
        raise RelgradError(
            f"{folder} holds another search (other {', '.join(differing)}). Give this one another name (name=...), or start over "
            "with --fresh"
        )


def _kept(path: Path) -> dict[int, dict[str, Any]]:
    """What was searched to its end, by the prompts' ids; a line that was cut off is searched again."""
    if not path.is_file():
        return {}
    cut_torn_line(path)
    return {record["id"]: record for record in read_lines(path)}


def _searched(policy: GuidesSearch, prompt: Prompt, rewards: RewardSet, recipe: DecisionRecipe) -> dict[str, Any]:
    """One line of trajectories.jsonl. Log-probabilities in nats, decision by decision; of selection and of the prior."""
    (tree,) = search_all(policy, [prompt], recipe.search.tree, recipe.search.evaluations, recipe.seed)
    record: dict[str, Any] = {"id": prompt.id, "prompt": prompt.text, "evaluations": tree.evaluations, "program": None}
    record |= {"reward": 0.0, "select_logp": [], "prior_logp": []}
    if (one := first_solution(tree)) is not None:
        rollouts = policy.rollouts_of([prompt], torch.zeros(1, dtype=torch.int64), [one.decisions])
        record["program"] = rollouts.outputs[0].text
        record["reward"] = float(combine(rewards(rollouts), rollouts.group_B).reward_B[0])
        record["select_logp"] = [round(value, 6) for value in one.select_logp]
        record["prior_logp"] = [round(value, 6) for value in one.prior_logp]
    return record


def _result(settings: DecisionSearch, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over prompts with their 95 % intervals; evaluations are censored at the most that a search may make."""
    solved = [record["program"] is not None and record["reward"] > 0 for record in records]
    counts = sorted({count for count in COUNTS if count < settings.evaluations} | {settings.evaluations})
    figures = {
        f"solved@{count}": [
            float(right and record["evaluations"] <= count) for right, record in zip(solved, records, strict=True)
        ]
        for count in counts
    }
    figures["evaluations"] = [
        float(record["evaluations"] if right else settings.evaluations)
        for right, record in zip(solved, records, strict=True)
    ]
    means = {name: mean_over(values, ())._asdict() for name, values in figures.items()}
    return {"prior": settings.prior, "prompts": len(records), "solved": sum(solved), "figures": means}
