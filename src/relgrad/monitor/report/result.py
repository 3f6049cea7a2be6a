"""What a run came to, for the head of the page: the last stage's score before and after, what was trained, and the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relgrad.core.registry import short
from relgrad.monitor.report.read import StageFiles, headline
from relgrad.monitor.report.words import first_word, mapping

MODEL_KEYS = ("model", "model_name_or_path", "path", "checkpoint", "name")


def result_of(stages: Sequence[StageFiles], views: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The result of a run of several stages; None of a stage alone. `views` are the stages as the page shows them.

    It is the last stage's that has a score after training, or else the last one's that has any; `later` are those after it.
    """
    if len(stages) < 2:
        return None
    scored = [i for i, stage in enumerate(stages) if headline(stage.evaluations)]
    after = [i for i in scored if len(headline(stages[i].evaluations)) > 1]
    last = max(after or scored, default=None)
    return {
        "stage": None if last is None else views[last],
        "scores": [] if last is None else views[last]["scores"][:1],
        "facts": run_facts(stages[last if last is not None else -1]),
        "later": [] if last is None else [view["title"] for view in views[last + 1 :] if view["evaluated"]],
    }


def run_facts(stage: StageFiles) -> list[tuple[str, str]]:
    """(label, value): the policy, what of it was trained, how it writes, as policy and task say it; not what is unknown."""
    policy, evaluation = mapping(stage.recipe.get("policy")), mapping(stage.recipe.get("evaluation"))
    own = {str(label): str(value) for label, value in mapping(stage.about.get("policy")).items()}
    task = {str(label): str(value) for label, value in mapping(stage.about.get("task")).items()}
    model = first_word(*(policy.get(key) for key in MODEL_KEYS))
    if "Temperature" not in own and isinstance(policy.get("temperature"), (int, float)):
        own["Temperature"] = f"{policy['temperature']:g}"
    if stage.evaluations:
        own["Scored by"] = scored_by(stage.recipe)
    if stage.evaluations and "num_prompts" in evaluation:
        own["Judged on"] = (
            f"{evaluation['num_prompts']} prompts, {evaluation.get('num_generations')} completions of each"
        )
    facts = [
        ("Policy", " · ".join(filter(None, [first_word(policy.get("kind")), model]))),
        ("Parameters", parameters(own.pop("Parameters", ""), stage)),
        ("Seed", str(stage.recipe.get("seed", ""))),
        *own.items(),
        *task.items(),
    ]
    return [(label, value) for label, value in facts if value]


def scored_by(recipe: Mapping[str, Any]) -> str:
    """What a score is the sum of: "judge", or "exact + 0.2 form"; "" for stages that nothing scores."""
    rewards = mapping(recipe.get("evaluation")).get("rewards") or recipe.get("rewards") or ()
    terms = []
    for reward in filter(lambda r: isinstance(r, Mapping), rewards):
        name, weight = str(reward.get("name") or short(str(reward.get("kind")))), reward.get("weight", 1)
        if weight:
            terms.append(name if weight == 1 else f"{weight:g} {name}")
    return " + ".join(terms)


def parameters(whole: str, stage: StageFiles) -> str:
    """How many numbers the policy has, and how many of them, or of what the stage trains beside it, are trained."""
    trained = stage.about.get("trained_parameters")
    if not isinstance(trained, int):
        return whole
    if stage.about.get("trains_policy") is False:
        return "; ".join(filter(None, [whole, f"{trained:,} of the {stage.kind} are trained"]))
    if not whole:
        return f"{trained:,} trained"
    return whole if whole == f"{trained:,}" else f"{whole}, of which {trained:,} are trained"
