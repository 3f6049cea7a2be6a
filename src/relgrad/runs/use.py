"""Using what was trained: sampling, evaluating, auditing, and the demo."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from relgrad.training import checkpoint
from relgrad.runs import recipe as config
from relgrad.runs.recipe import Stage
from relgrad.evaluation.held_out import Evaluation, compare, evaluate
from relgrad.judges.network import Judge
from relgrad.networks.weights.folder import newest
from relgrad.runs.build import build_policy, find_recipe, is_linked, load_task, stage_rewards
from relgrad.core.randomness import generator
from relgrad.rewards.combine import RewardSet
from relgrad.runs.run import run_recipe
from relgrad.core.run_folder import RunDir, write_json
from relgrad.core.types import Prompt
from relgrad.core.errors import RelgradError


def open_source(source: str, overrides: Sequence[str]) -> tuple[Stage, Path | None]:
    """A recipe (untrained policy of its last stage), or a run or stage folder (its newest checkpoint)."""
    path = Path(source)
    if not path.is_dir():
        return config.load_recipe(find_recipe(source), overrides).stages[-1], None
    stages = [path] if (path / "recipe.yaml").is_file() else sorted(p.parent for p in path.glob("*/recipe.yaml"))
    if not stages:
        raise RelgradError(f"{source}: neither a recipe nor a run folder (no recipe.yaml in it or one level below)")
    for folder in reversed(stages):
        raw = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        stage = config.parse_recipe(raw, overrides, source=str(folder)).stages[0]
        if stage.stage == "judge":
            continue
        newest = checkpoint.latest(RunDir(folder).checkpoints)
        if newest is None:
            raise RelgradError(f"{folder}: no checkpoint yet; run the recipe first")
        return stage, newest
    raise RelgradError(f"{source}: a judge stage; a policy is in the stages of kind sft and grpo")


def rewards_of(stage: Stage, start: Path | None) -> RewardSet | None:
    """What a stage opened with `open_source` is judged by; `stage:LABEL` is looked up in the run it came from.

    Rewards that go on learning in a run score as they did before it, as they do in the run's own evaluations.
    """
    run = start.parents[2] if start is not None else None
    return stage_rewards(stage, stage.judged_by, run) if stage.judged_by else None


def sample(source: str, prompts: list[str], n: int, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """Completions of the given prompts, worded as the task words its own, or of the first held-out ones, scored."""
    stage, start = open_source(source, overrides)
    task = load_task(stage)
    rewards: RewardSet | None = None
    if prompts:
        asked: Sequence[Prompt] = [Prompt(task.ask(text), id=i) for i, text in enumerate(prompts)]
    else:
        asked = task.held_out[:4]
        if not asked:
            raise RelgradError(f"{source}: the task holds out no prompts to sample for; give your own with --prompt")
        rewards = rewards_of(stage, start) if start is not None or not is_linked(stage) else None
    policy = build_policy(stage, start)
    with getattr(policy, "evaluation", nullcontext)():
        rollouts = policy.sample(asked, n, generator(stage.seed, "cli"))
    table = rewards(rollouts) if rewards is not None else None
    logp_B = (rollouts.behaviour_logp_BT * rollouts.mask_BT).sum(-1)
    for row, output in enumerate(rollouts.outputs):
        record = {
            "prompt": asked[int(rollouts.group_B[row])].text,
            "completion": output.text,
            "stop": rollouts.stop[row],
            "logp": float(logp_B[row]),
        }
        if table is not None:
            record |= {name: float(table.value_BR[row, r]) for r, name in enumerate(table.names)}
        yield record


def evaluate_run(
    source: str, against: str | None, overrides: list[str], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The held-out score of a run or recipe; with `against`, also that of another and the paired difference."""
    stage, start = open_source(source, overrides)
    task, rewards = load_task(stage), rewards_of(stage, start)
    if rewards is None:
        raise RelgradError(f"{source}: nothing to score with; add rewards to the recipe")
    settings = stage.evaluation

    def score(stage: Stage, start: Path | None) -> Evaluation:
        return evaluate(
            build_policy(stage, start), task.held_out[: settings.num_prompts], rewards,
            num_generations=settings.num_generations, seed=settings.seed, progress=progress,
        )  # fmt: skip

    found = score(stage, start)
    record = found.to_record(int(start.name.removeprefix("step_")) if start else 0, "held-out")
    if against is not None:
        other = score(*open_source(against, overrides))
        difference = compare(other, found)
        record |= {"against": other.score, "difference": difference.value}
        record |= {"difference_low": difference.low, "difference_high": difference.high}
    return record


def demo(overrides: list[str]) -> None:
    """Run the demo recipe and say what it did: held-out score before and after, and where the report is."""
    recipe = config.load_recipe(find_recipe("demo"), overrides)
    (folder,) = run_recipe(recipe)
    records = RunDir(folder).lines("evaluations.jsonl")
    before, after = records[0], records[-1]
    for name, record in (("before", before), ("after", after)):
        print(
            f"held-out score {name:6}  {record['score']:.3f}   95 % interval [{record['low']:.3f}, {record['high']:.3f}]"
        )
    low, high = after["difference_low"], after["difference_high"]
    print(
        f"difference             {after['difference']:+.3f}   95 % interval [{low:+.3f}, {high:+.3f}], paired by prompt"
    )
    print(f"report                 {json.dumps(str((folder / 'report.html').resolve()))[1:-1]}")


def audit(
    source: str, generator_source: str, out: str | None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Calibrate and audit a judge on what a run's policy writes; the findings go into the judge's folder, or into `out`.

    The folder of a judge stage is audited as the stage itself did it, and its audit.json is written again.

    Raises RelgradError for a judge of another vocabulary, a policy that does not fill in masked text, or an original file without
    `out`.
    """
    from relgrad.judges import refill

    stage, start = open_source(generator_source, [])
    judge = Judge.load(Path(source))
    target = Path(out) if out is not None else newest(Path(source))
    if target.is_file():
        raise RelgradError(
            f"{source}: an audit cannot be written into a .pt file; name a folder for the judge with --out"
        )
    policy = build_policy(stage, start)
    refill.require_generator(policy)
    judge.vocabulary.require(policy.vocabulary.fingerprint, generator_source)
    settings, own = refill.Settings(), Path(source) / "recipe.yaml"
    if own.is_file():
        recipe = config.parse_recipe(yaml.safe_load(own.read_text(encoding="utf-8")), source=source)
        if (component := recipe.stages[0].judge) is not None and component.kind == "refill":
            settings = config.settings_of(component, refill.Settings, "judge")
    trained = refill.RefillJudge(judge, policy, settings)
    found = trained.audit(load_task(stage).held_out, generator(stage.evaluation.seed, "audit"), progress)
    target.mkdir(parents=True, exist_ok=True)
    judge.save(target)
    if out is None and own.is_file():
        write_json(Path(source) / "audit.json", found)
    return found
