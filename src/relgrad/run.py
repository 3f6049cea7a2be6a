"""The composition root: recipes become runs. The only place where policies, rewards, tasks and loops meet by name."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import relgrad
from relgrad import checkpoint, config, registry
from relgrad.config import Recipe, Stage
from relgrad.console import Console
from relgrad.diagnose import diagnose
from relgrad.environment import capture
from relgrad.evaluate import Evaluation, compare, evaluate
from relgrad.losses import PolicyLoss
from relgrad.protocols import Loss, Rewards
from relgrad.randomness import generator
from relgrad.report import write_report
from relgrad.rewards.combine import build_rewards
from relgrad.rundir import RunDir, write_atomic, write_json
from relgrad.sft import Sft
from relgrad.tasks import Task
from relgrad.tracking import open_trackers
from relgrad.train import Grpo, train
from relgrad.types import Example, Prompt, RelgradError, StepRecord

RECIPES = Path(relgrad.__file__).parent / "recipes"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


def find_recipe(name: str) -> Path:
    """A recipe file by path, or a built-in recipe by name. Raises RelgradError with the names there are."""
    if Path(name).is_file():
        return Path(name)
    built_in = RECIPES / f"{name}.yaml"
    if built_in.is_file():
        return built_in
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise RelgradError(f"no recipe {name!r}: no such file (working directory {Path.cwd()}), and built-in are {names}")


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every component's settings checked and its defaults written out. Raises RelgradError."""
    stages = []
    for number, stage in enumerate(recipe.stages):
        try:
            stages.append(_resolve_stage(stage))
        except RelgradError as error:
            raise RelgradError(f"{recipe.name}, stage {number + 1} ({stage.stage}): {error}") from None
    return Recipe(name=recipe.name, stages=tuple(stages))


def _resolve_stage(stage: Stage) -> Stage:
    def filled(component: Any, room: str, where: str) -> Any:
        settings = config.settings_of(component, registry.find(room, component.kind).Settings, where)
        own = component.model_dump(include=type(component).model_fields)
        return type(component)(**own, **settings.model_dump(mode="json"))

    rewards = tuple(filled(r, "rewards", f"rewards.{i}") for i, r in enumerate(stage.rewards))
    parts = {"policy": filled(stage.policy, "policies", "policy"), "task": filled(stage.task, "tasks", "task")}
    return stage.model_copy(update={**parts, "rewards": rewards})


def stage_folders(recipe: Recipe) -> list[Path]:
    """Where each stage runs: `out/name/1-sft`, `out/name/2-grpo`."""
    return [stage.out / recipe.name / f"{i + 1}-{stage.stage}" for i, stage in enumerate(recipe.stages)]


# ---------------------------------------------------------------------- running


def run_recipe(recipe: Recipe, *, fresh: bool = False) -> list[Path]:
    """Run every stage of a recipe, each going on from the one before; finished stages are skipped, others resumed.

    Returns the stage folders. Raises RelgradError when a folder holds a run of another recipe (and `fresh` is False).
    """
    recipe = resolve(recipe)
    folders = stage_folders(recipe)
    for folder, stage in zip(folders, recipe.stages, strict=True):
        if fresh:
            RunDir(folder).clear()
        _require_same_recipe(folder, stage)
    for i, (folder, stage) in enumerate(zip(folders, recipe.stages, strict=True)):
        StageRun(stage, folder, start=folders[i - 1] if i else None).run()
    if len(folders) > 1:
        write_report(folders[0].parent)
    return folders


class StageRun:
    """One stage from its settings and folder: builds the parts, resumes, trains, evaluates, saves, reports."""

    def __init__(self, stage: Stage, folder: Path, start: Path | None) -> None:
        self.stage, self.run_dir, self.previous = stage, RunDir(folder), start
        self.total = (stage.grpo if stage.stage == "grpo" else stage.sft).steps
        self.title = f"{stage.name}/{folder.name}"

    def run(self) -> None:
        """Train to the last step, unless that was done before. Raises RelgradError when the folder cannot be written."""
        try:
            self._run()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            saved = checkpoint.steps(self.run_dir.checkpoints)
            kept = f"The newest complete checkpoint is step {saved[-1]}" if saved else "There is no checkpoint yet"
            raise RelgradError(
                f"{self.run_dir.root} cannot be written: {error}. {kept}. Free some space (or change `out`) and start the "
                "same command again"
            ) from error

    def _run(self) -> None:
        saved = checkpoint.steps(self.run_dir.checkpoints)
        if saved and saved[-1] >= self.total:
            print(f"{self.title}: finished before ({self.run_dir.root}); --fresh starts over")
            if not (self.run_dir.root / "report.html").is_file():  # killed between the last checkpoint and the report
                write_report(self.run_dir.root)
            return
        print(f"{self.title}: loading the task and the policy ...", flush=True)
        self._build()
        newest = checkpoint.latest(self.run_dir.checkpoints)
        if newest is not None:
            checkpoint.restore(newest, self.loop, self.policy)
        self.run_dir.rewind(self.loop.step if newest is not None else -1)
        self._write_head()
        first = self.loop.step
        trackers = open_trackers(
            self.stage.trackers, self.run_dir, title=self.title, config=self._resolved(), first_step=first
        )
        self.told = {w["name"] for w in self.run_dir.lines("warnings.jsonl")}
        self.records = self.run_dir.lines("metrics.jsonl")
        with trackers, Console(self.title, self.total, first_step=first) as self.console:
            self.trackers = trackers
            if note := getattr(self.policy, "engine_note", ""):
                self.console.note(f"engine: {self.policy.engine} ({note})")
            if first:
                self.console.note(f"resumed after step {first}")
            self.baseline = self._baseline()
            train(self.loop, self._after)
        if self.rewards is not None:
            self.rewards.close()
        print(f"report: {write_report(self.run_dir.root)}")

    def _build(self) -> None:
        """Task, rewards, policy and loop. The cheap parts come first, so that their mistakes cost no model loading."""
        stage = self.stage
        self.task = load_task(stage)
        self.rewards = build_rewards(stage.rewards, stage.grpo.reward_timeout) if stage.rewards else None
        self._evaluates = self.rewards is not None and len(self.task.held_out) > 0
        start = None
        if self.previous is not None:
            start = checkpoint.latest(RunDir(self.previous).checkpoints)
            if start is None:
                raise RelgradError(f"{self.previous}: the stage before left no checkpoint to go on from")
        examples = None
        if stage.stage == "sft":
            examples = supervised_examples(self.task, stage.sft.completion_column)
        self.policy = build_policy(stage, start)
        if stage.stage == "grpo":
            assert self.rewards is not None
            self.loop: Any = Grpo(
                self.policy, self.task.train, self.rewards, policy_loss(stage), stage.grpo, seed=stage.seed
            )
        else:
            assert examples is not None
            self.loop = Sft(self.policy, examples, stage.sft, seed=stage.seed)

    def _resolved(self) -> dict[str, Any]:
        unused = {"grpo": {"sft"}, "sft": {"grpo"}}[self.stage.stage]
        return self.stage.model_dump(mode="json", exclude=unused)

    def _write_head(self) -> None:
        head = yaml.safe_dump(self._resolved(), sort_keys=False, allow_unicode=True)
        write_atomic(self.run_dir.root / "recipe.yaml", head)
        write_json(self.run_dir.root / "environment.json", capture())

    # ------------------------------------------------------------------ after every step

    def _after(self, record: StepRecord) -> None:
        step, last = record.step, record.step == self.total
        self.trackers.log(step, record.metrics)
        self.console.log(step, record.metrics)
        self.records.append({"step": step, **record.metrics})
        batch = getattr(self.loop, "batch", None)
        if batch is not None and batch.samples and batch.used == 1:
            samples = [{"step": step, **sample} for sample in batch.samples]
            self.run_dir.write_samples(step, samples)
            self.console.samples(step, samples)
        self._warn(step)
        every = self.stage.evaluation.every
        evaluated = self._evaluates and (last or (every and step % every == 0))
        if evaluated:
            self._evaluate(step)
        every = self.stage.checkpoint.every
        if last or evaluated or (every and step % every == 0):
            self._save()

    def _warn(self, step: int) -> None:
        for warning in diagnose(self.records, self._resolved()):
            if warning.name not in self.told:
                self.told.add(warning.name)
                self.run_dir.append("warnings.jsonl", {**vars(warning), "step": step})
                self.console.warn(f"{warning.name}: {warning.evidence} {warning.advice}")

    def _evaluate(self, step: int) -> None:
        assert self.rewards is not None
        settings = self.stage.evaluation
        prompts = self.task.held_out[: settings.num_prompts]
        self.console.note(f"evaluating on {len(prompts)} held-out prompts x {settings.num_generations} completions ...")
        found = evaluate(
            self.policy,
            prompts,
            self.rewards,
            num_generations=settings.num_generations,
            seed=settings.seed,
            progress=lambda done, total: self.console.busy("evaluating", done, total),
        )
        record = found.to_record(step, "held-out", self.baseline)
        self.run_dir.append("evaluations.jsonl", record)
        self.console.evaluation(record)
        if self.baseline is None:
            self.baseline = found

    def _baseline(self) -> Evaluation | None:
        """The evaluation before the first step: read where an earlier process made it, made now otherwise."""
        self.baseline = None
        if not self._evaluates:
            return None
        for record in self.run_dir.lines("evaluations.jsonl"):
            if record["step"] == 0:
                return Evaluation.from_record(record)
        self._evaluate(0)
        return self.baseline

    def _save(self) -> None:
        root = self.run_dir.checkpoints
        checkpoint.save(root, self.loop, self.policy)
        best = checkpoint.best_step(self.run_dir.lines("evaluations.jsonl"), checkpoint.steps(root))
        checkpoint.prune(root, self.stage.checkpoint.keep, best)


def _require_same_recipe(folder: Path, stage: Stage) -> None:
    """Raise RelgradError when the folder was made by another recipe.

    Where it goes and what watches it may change, and more steps may be asked for, unless the schedule depends on them.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        return
    free = {"out", "trackers"}
    if (stage.grpo if stage.stage == "grpo" else stage.sft).lr_scheduler_type == "constant":
        free.add(f"{stage.stage}.steps")
    unused = {"grpo": {"sft"}, "sft": {"grpo"}}[stage.stage]
    new = _flat(stage.model_dump(mode="json", exclude=unused))
    old = _flat(yaml.safe_load(file.read_text(encoding="utf-8")))
    differing = sorted(k for k in {*new, *old} - free if not k.startswith("trackers") and new.get(k) != old.get(k))
    if differing:
        shown = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing[:5])
        raise RelgradError(
            f"{folder} holds a run of another recipe ({shown}). Give this one another name (name=...), or start over "
            "with --fresh"
        )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: value}


# ---------------------------------------------------------------------- parts by name


def load_task(stage: Stage) -> Task:
    """The stage's task. Raises RelgradError when it has no training prompts."""
    module = registry.find("tasks", stage.task.kind)
    task = module.load(config.settings_of(stage.task, module.Settings, "task"), stage.seed)
    if not task.train:
        raise RelgradError(
            f"task {stage.task.kind!r} has no training prompts; look at its path, split and limit settings"
        )
    return task


def build_policy(stage: Stage, start: Path | None) -> Any:
    """The stage's policy, going on from `start` where an earlier stage left one."""
    module = registry.find("policies", stage.policy.kind)
    settings = config.settings_of(stage.policy, module.Settings, "policy")
    reference = stage.stage == "grpo" and stage.grpo.beta > 0
    return module.build(settings, stage.seed, start=start, reference=reference)


def policy_loss(stage: Stage) -> Loss:
    """The loss that the `grpo` section describes: a built-in one, or what the `build` of its `loss` module returns."""
    if stage.grpo.loss is not None:
        return registry.find("losses", stage.grpo.loss).build(stage.grpo)
    names = PolicyLoss.__dataclass_fields__
    return PolicyLoss(**{name: getattr(stage.grpo, name) for name in names})


def supervised_examples(task: Task, column: str) -> list[Example]:
    """Training prompts with their targets. Raises RelgradError when a row lacks the column."""
    for prompt in task.train:
        if not isinstance(prompt.columns.get(column), str):
            raise RelgradError(
                f"sft: prompt {prompt.id} has no text column {column!r}; it has {', '.join(sorted(prompt.columns)) or 'none'}. "
                "Set sft.completion_column to the column that holds the text to learn"
            )
    return [Example(p, p.columns[column]) for p in task.train]


# ---------------------------------------------------------------------- using what was trained


def open_source(source: str, overrides: Sequence[str]) -> tuple[Stage, Path | None]:
    """A recipe (untrained policy of its last stage), or a run or stage folder (its newest checkpoint)."""
    path = Path(source)
    if not path.is_dir():
        return config.load_recipe(find_recipe(source), overrides).stages[-1], None
    stages = [path] if (path / "recipe.yaml").is_file() else sorted(p.parent for p in path.glob("*/recipe.yaml"))
    if not stages:
        raise RelgradError(f"{source}: neither a recipe nor a run folder (no recipe.yaml in it or one level below)")
    newest = checkpoint.latest(RunDir(stages[-1]).checkpoints)
    if newest is None:
        raise RelgradError(f"{stages[-1]}: no checkpoint yet; run the recipe first")
    raw = yaml.safe_load((stages[-1] / "recipe.yaml").read_text(encoding="utf-8"))
    return config.parse_recipe(raw, overrides, source=str(stages[-1])).stages[0], newest


def sample(source: str, prompts: list[str], n: int, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """Completions of the given prompts, worded as the task words its own, or of the first held-out ones, scored."""
    stage, start = open_source(source, overrides)
    task = load_task(stage)
    rewards: Rewards | None = None
    if prompts:
        asked: Sequence[Prompt] = [Prompt(task.ask(text), id=i) for i, text in enumerate(prompts)]
    else:
        asked = task.held_out[:4]
        if not asked:
            raise RelgradError(f"{source}: the task holds out no prompts to sample for; give your own with --prompt")
        rewards = build_rewards(stage.rewards, stage.grpo.reward_timeout) if stage.rewards else None
    policy = build_policy(stage, start)
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
    if not stage.rewards:
        raise RelgradError(f"{source}: nothing to score with; add rewards to the recipe")
    task, rewards = load_task(stage), build_rewards(stage.rewards, stage.grpo.reward_timeout)
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
