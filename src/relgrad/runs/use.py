"""Using what was trained: sampling, evaluating, auditing, and the demo."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.memory import spared
from relgrad.core.protocols import Exported, SettledByWeights
from relgrad.core.randomness import generator
from relgrad.core.run_folder import RunDir, refuse_folder_of_runs, require_writable_file, stages_in
from relgrad.core.types import Prompt
from relgrad.core.whole_text import half_character
from relgrad.evaluation.held_out import as_judged, evaluate
from relgrad.monitor.intervals import ends_of
from relgrad.monitor.report.read import headline
from relgrad.rewards.combine import RewardSet
from relgrad.runs import named_files
from relgrad.runs.build import find_recipe, is_linked, linked_rewards, load_task
from relgrad.runs.named_stages import stage_in_run
from relgrad.runs.read_stage import read_stage
from relgrad.runs.recipe import load_recipe
from relgrad.runs.run import run_recipe
from relgrad.stages import judge
from relgrad.stages.kind import build_policy, kind_of
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint

Part = Literal["validation", "test"]


def open_source(source: str, overrides: Sequence[str]) -> tuple[Stage, Path | None]:
    """A recipe (untrained policy of its last stage), a run or stage folder (its newest checkpoint), or RUN:LABEL, a run's stage.

    Raises RelgradError for what is none of them, and where a checkpoint, also one that the settings name, is damaged. Says so where
    a run was trained on other files than those that its settings name now.
    """
    stage, start = find_source(source, overrides)
    named_files.require_undamaged(stage)
    if start is not None:
        named_files.warn_of_changes(start.parents[1], stage)
    return stage, start


def find_source(source: str, overrides: Sequence[str]) -> tuple[Stage, Path | None]:
    """What `open_source` opens, without a word on its files."""
    path = stage_in_run(source) or Path(source)
    if path.name in ("", ".."):
        path = path.resolve()  # what belongs to a stage is looked up in the folders above it
    if not path.is_dir():
        return load_recipe(find_recipe(source), overrides).stages[-1], None
    folders = [path] if (path / "recipe.yaml").is_file() else stages_in(path)
    if not folders:
        refuse_folder_of_runs(path)
        raise RelgradError(f"{source}: neither a recipe nor a run folder (no recipe.yaml in it or one level below)")
    for folder in reversed(folders):
        stage = read_stage(folder, overrides)
        if not kind_of(stage).trains_policy:
            continue
        newest = checkpoint.latest_to_use(RunDir(folder).checkpoints)
        if newest is None:
            raise RelgradError(f"{folder}: no checkpoint yet; run the recipe first")
        _require_effect(read_stage(folder), stage, newest)
        return stage, newest
    raise RelgradError(
        f"{source}: a {read_stage(folders[-1]).called} stage, which trains no policy; give the folder of a stage that does"
    )


def _require_effect(written: Stage, overridden: Stage, weights: Path) -> None:
    """Raise RelgradError where an override changes a setting of the policy that its saved weights settle."""
    module = registry.find("policies", overridden.policy.kind)
    if not isinstance(module, SettledByWeights) or written.policy.kind != overridden.policy.kind:
        return
    before, now = written.policy.options, overridden.policy.options
    for name in module.settled(weights):
        if now.get(name) != before.get(name):
            raise RelgradError(
                f"policy.{name}={now.get(name)!r} has no effect on {weights}, whose weights are of a policy with "
                f"{before.get(name)!r}. Leave it out; to use other weights, name their run, or a recipe"
            )


def rewards_of(stage: Stage, start: Path | None) -> RewardSet | None:
    """What a stage opened with `open_source` is judged by; `stage:LABEL` is looked up in the run it came from.

    Rewards that go on learning in a run score as they did before it, as they do in the run's own evaluations.
    """
    run = start.parents[2] if start is not None else None
    return linked_rewards(stage.judged_by, stage.reward_seconds, run) if stage.judged_by else None


def export(source: str, file: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Write a run's trained policy, or a recipe's untrained one, for the program that its network comes from; returns its notes.

    Raises RelgradError for a kind of policy that has no such format.
    """
    require_writable_file(file)
    stage, start = open_source(source, overrides)
    policy = build_policy(stage, start)
    if not isinstance(policy, Exported):
        raise RelgradError(
            f"{source}: a policy of kind {stage.policy.kind} is saved in its library's own format already: take the checkpoint's "
            "folder"
        )
    return policy.export(file)


def own_prompts(task: Task, texts: Sequence[str]) -> list[Prompt]:
    """A person's own texts, worded as the task words its prompts. Raises RelgradError naming the one that cannot be a prompt."""
    prompts = []
    for number, text in enumerate(texts):
        if wrong := half_character(text):
            raise RelgradError(f"--prompt number {number + 1} has {wrong}: it is no UTF-8 text")
        try:
            prompts.append(Prompt(task.ask(text), id=number))
        except ValueError as error:
            raise RelgradError(f"--prompt number {number + 1}: {error}") from None
    return prompts


def sample(source: str, prompts: list[str], n: int, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """Completions of the given prompts, worded as the task words its own, or of the first test prompts, scored."""
    stage, start = open_source(source, overrides)
    task = load_task(stage)
    rewards: RewardSet | None = None
    if prompts:
        chosen: Sequence[Prompt] = own_prompts(task, prompts)
    else:
        chosen = task.test[:4]
        if not chosen:
            raise RelgradError(f"{source}: the task has no test prompts to sample for; give your own with --prompt")
        rewards = rewards_of(stage, start) if start is not None or not is_linked(stage) else None
    policy = build_policy(stage, start)
    with (
        as_judged(policy),
        spared("drawing completions", f"Lower -n ({n}), give fewer prompts, or let shorter texts be written"),
    ):
        rollouts = policy.sample(chosen, n, generator(stage.seed, "cli"))
    table = rewards(rollouts) if rewards is not None else None
    logp_B = (rollouts.behaviour_logp_BT * rollouts.mask_BT).sum(-1)
    for row, output in enumerate(rollouts.outputs):
        record = {
            "prompt": chosen[int(rollouts.group_B[row])].text,
            "completion": output.text,
            "stop": rollouts.stop[row],
            "logp": float(logp_B[row]),
        }
        if table is not None:
            record |= {name: float(table.value_BR[row, r]) for r, name in enumerate(table.names)}
        yield record


def evaluate_run(
    source: str, overrides: list[str], progress: Callable[[int, int], None] | None = None, part: Part = "test"
) -> dict[str, Any]:
    """The score of a run or recipe on a part of its task, as a line of evaluations.jsonl.

    Where the task has no test prompts of its own, the score is of its validation prompts, and the record says so.
    """
    stage, start = open_source(source, overrides)
    task, rewards = load_task(stage), rewards_of(stage, start)
    if rewards is None:
        raise RelgradError(f"{source}: nothing to score with; add rewards to the recipe")
    settings = stage.evaluation
    policy = build_policy(stage, start)
    with spared("drawing completions", f"Lower evaluation.num_generations ({settings.num_generations})"):
        evaluation = evaluate(
            policy,
            (task.test if part == "test" else task.validation)[: settings.num_prompts],
            rewards,
            num_generations=settings.num_generations,
            seed=settings.seed,
            progress=progress,
        )
    step = int(start.name.removeprefix("step_")) if start else 0
    return evaluation.to_record(step, "validation" if task.two_parts else part)


def demo(overrides: list[str]) -> None:
    """Run the demo recipe and say what it did: the score before and after, and where the report is."""
    recipe = load_recipe(find_recipe("demo"), overrides)
    (folder,) = run_recipe(recipe)
    records = headline(RunDir(folder).lines("evaluations.jsonl"))
    before, after = records[0], records[-1]
    for name, record in (("before", before), ("after", after)):
        label = f"{record['name']} score {name}"
        print(f"{label:23}{record['score']:.3f}   95 % interval {ends_of(record, '{:.3f}'.format)}")
    paired = ends_of(after, "{:+.3f}".format, "difference_")
    print(f"difference             {after['difference']:+.3f}   95 % interval {paired}, paired by prompt")
    print(f"report                 {json.dumps(str((folder / 'report.html').resolve()))[1:-1]}")


def audit(
    source: str, generator_source: str, out: str | None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Calibrate and audit a judge on what a run's policy writes; the findings go into the judge's folder, or into `out`.

    The folder of a judge stage is audited as the stage itself did it. Raises RelgradError for a judge of another vocabulary, a
    policy that the judge cannot read, or an original file without `out`.
    """
    stage, start = open_source(generator_source, [])
    folder = Path(source)
    if folder.is_dir():
        refuse_folder_of_runs(folder)
    own = read_stage(folder) if (folder / "recipe.yaml").is_file() else None
    return judge.examine(
        folder, own, build_policy(stage, start), load_task(stage), stage.evaluation.seed, out, progress
    )
