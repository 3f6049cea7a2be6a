"""Recipes become runs: every stage built, resumed, trained, evaluated, saved and reported."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import yaml

from relgrad.training import checkpoint
from relgrad.core import registry
from relgrad.runs.recipe import Recipe, Stage
from relgrad.monitor.console import Console, number
from relgrad.monitor.diagnose import diagnose
from relgrad.runs.environment import capture
from relgrad.evaluation.held_out import Evaluation, evaluate, film
from relgrad.runs.build import Examples, build_judge, build_policy, judge_seed, load_task, policy_loss, resolve, stage_folders, stage_rewards
from relgrad.core.randomness import draw_epochs, generator
from relgrad.monitor.report import write_report
from relgrad.rewards.combine import RewardSet
from relgrad.core.run_folder import RunDir, write_atomic, write_json
from relgrad.training.sft import Sft
from relgrad.runs.tracking import open_trackers
from relgrad.training.grpo import Grpo, train
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Noted
from relgrad.core.types import StepRecord

FILMED = 4
"""Held-out prompts whose filling in is kept for the report, before and after."""
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


# ---------------------------------------------------------------------- running


def run_recipe(recipe: Recipe, *, fresh: bool = False) -> list[Path]:
    """Run every stage of a recipe, each going on from the policy of the one before; finished stages are skipped, others resumed.

    Returns the stage folders. Raises RelgradError when a folder holds a run of another recipe (and `fresh` is False).
    """
    recipe = resolve(recipe)
    folders = stage_folders(recipe)
    for folder, stage in zip(folders, recipe.stages, strict=True):
        if fresh:
            RunDir(folder).clear()
        _require_same_recipe(folder, stage)
    for i, (folder, stage) in enumerate(zip(folders, recipe.stages, strict=True)):
        before = [folders[j] for j in range(i) if recipe.stages[j].stage != "judge"]
        StageRun(stage, folder, start=before[-1] if before else None).run()
    if len(folders) > 1:
        write_report(folders[0].parent)
    return folders


class StageRun:
    """One stage from its settings and folder: builds the parts, resumes, trains, evaluates, saves, reports."""

    def __init__(self, stage: Stage, folder: Path, start: Path | None) -> None:
        self.stage, self.run_dir, self.previous = stage, RunDir(folder), start
        self.total = stage.loop.steps
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
        if saved and (saved[-1] >= self.total or self._settled()):
            print(f"{self.title}: finished before ({self.run_dir.root}); --fresh starts over")
            if not (self.run_dir.root / "report.html").is_file():  # killed between the last checkpoint and the report
                write_report(self.run_dir.root)
            return
        print(f"{self.title}: loading the task and the policy ...", flush=True)
        self._build()
        newest = checkpoint.latest(self.run_dir.checkpoints)
        if newest is not None:
            checkpoint.restore(newest, self.loop, self.trained, self.learners)
        self.run_dir.rewind(self.loop.step if newest is not None else -1)
        self._write_head()
        first = self.loop.step
        trackers = open_trackers(
            self.stage.trackers, self.run_dir, title=self.title, config=self.stage.used, first_step=first
        )
        self.told = {w["name"] for w in self.run_dir.lines("warnings.jsonl")}
        self.records = self.run_dir.lines("metrics.jsonl")
        with trackers, Console(self.title, self.total, first_step=first, figures=self.figures) as self.console:
            self.trackers = trackers
            if isinstance(self.policy, Noted):
                for note in self.policy.notes:
                    self.console.note(note)
            if first:
                self.console.note(f"resumed after step {first}")
            self.baseline = self._baseline()
            train(self.loop, self._after)
        for rewards in {id(r): r for r in (self.rewards, self.judged_by) if r is not None}.values():
            rewards.close()
        print(f"report: {write_report(self.run_dir.root)}")

    def _build(self) -> None:
        """Task, rewards, policy and loop. The cheap parts come first, so that their mistakes cost no model loading."""
        stage = self.stage
        self.task = load_task(stage)
        judging = stage.stage == "judge"
        self.rewards, self.judged_by = self._rewards()
        self.learners: Any = self.rewards.learners if self.rewards is not None else {}
        self._evaluates = self.judged_by is not None and len(self.task.held_out) > 0
        start = None
        if self.previous is not None:
            start = checkpoint.latest(RunDir(self.previous).checkpoints)
            if start is None:
                raise RelgradError(f"{self.previous}: the stage before left no checkpoint to go on from")
        column = None if judging else stage.sft.completion_column
        examples = None if stage.stage == "grpo" else Examples(self.task, column)
        self.policy = build_policy(stage, start)
        grpo = stage.stage == "grpo"
        self.figures = getattr(registry.find("policies", stage.policy.kind), "FIGURES", None) if grpo else None
        self.trained: Any = build_judge(stage, self.policy) if judging else self.policy
        if judging:
            self.trained.require(self.task.held_out)
        if examples is None:
            assert self.rewards is not None
            self.loop: Any = Grpo(
                self.policy, self.task.train, self.rewards, policy_loss(stage), stage.grpo, seed=stage.seed
            )
        else:
            self.loop = Sft(self.trained, examples, stage.sft, seed=judge_seed(stage) if judging else stage.seed)

    def _rewards(self) -> tuple[RewardSet | None, RewardSet | None]:
        """Those that are trained on, and those of evaluations: the same objects unless the recipe names others."""
        stage, run = self.stage, self.run_dir.root.parent
        if stage.stage == "judge":
            return None, None
        rewards = stage_rewards(stage, stage.rewards, run) if stage.rewards and stage.stage == "grpo" else None
        if stage.evaluation.rewards or rewards is None:
            return rewards, stage_rewards(stage, stage.judged_by, run) if stage.judged_by else None
        return rewards, rewards

    def _write_head(self) -> None:
        head = yaml.safe_dump(self.stage.used, sort_keys=False, allow_unicode=True)
        write_atomic(self.run_dir.root / "recipe.yaml", head)
        write_json(self.run_dir.root / "environment.json", capture())

    # ------------------------------------------------------------------ after every step

    def _after(self, record: StepRecord) -> bool:
        """Log, evaluate, save; whether this was the last step."""
        step, last = record.step, record.step == self.total
        self._refit(record)
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
            last = last or self._settled()
            if last:
                self._take_best(step)
        if last and self.stage.stage == "judge":
            self._audit()
        if last and evaluated:
            self._film(step)
        every = self.stage.checkpoint.every
        if last or evaluated or (every and step % every == 0):
            self._save()
        return last

    def _settled(self) -> bool:
        return checkpoint.settled(self.run_dir.lines("evaluations.jsonl"), self.stage.evaluation.patience)

    def _take_best(self, step: int) -> None:
        """A stage with patience ends with the weights of its best evaluation."""
        if self.stage.evaluation.patience is None:
            return
        records = self.run_dir.lines("evaluations.jsonl")
        best = checkpoint.best_step(records, [*checkpoint.steps(self.run_dir.checkpoints), step])
        if step < self.total:
            self.console.note(f"held-out score stopped improving: the stage ends after step {step} of {self.total}")
        if best is not None and best != step:
            self.trained.load(checkpoint.folder_of(self.run_dir.checkpoints, best))
            self.console.note(f"the weights of step {best} scored best and are kept as the result")

    def _refit(self, record: StepRecord) -> None:
        """Let the rewards that learn see what the policy writes by now, when it is time."""
        for name, learner in self.learners.items():
            if learner.due(record.step):
                draw = generator(self.stage.seed, "refit", name, record.step)
                count = learner.prompts_wanted()
                prompts = draw_epochs(self.task.train, max(self.loop.cursor - count, 0), count, self.stage.seed)
                record.metrics[f"rewards/{name}/refit_loss"] = learner.refit(self.policy, prompts, draw)

    def _audit(self) -> None:
        """Examine a judge on held-out text and write what was found to `audit.json`, before it is saved for the last time."""
        self.console.note("auditing the judge on held-out prompts ...")
        found = self.trained.audit(
            self.task.held_out,
            generator(self.stage.evaluation.seed, "audit"),
            lambda done, total: self.console.busy("auditing", done, total),
        )
        write_json(self.run_dir.root / "audit.json", found)
        for name, value in found.items():
            if not isinstance(value, list):
                self.console.note(f"audit: {name.replace('_', ' ')} {number(value)}")

    def _film(self, step: int) -> None:
        """Policies that write in several steps are filmed doing so, on the same prompts and random numbers every time."""
        if self.stage.stage != "grpo" or not hasattr(self.policy, "film"):
            return
        assert self.rewards is not None
        draw = generator(self.stage.seed, "film")
        with self.rewards.fixed():
            for one in film(self.policy, self.task.held_out[:FILMED], 1, draw, self.rewards):
                self.run_dir.append("films.jsonl", {"step": step, **one})

    def _warn(self, step: int) -> None:
        for warning in diagnose(self.records, self.stage.used):
            if warning.name not in self.told:
                self.told.add(warning.name)
                self.run_dir.append("warnings.jsonl", {**vars(warning), "step": step})
                self.console.warn(f"{warning.name}: {warning.evidence}. {warning.advice}")

    def _evaluate(self, step: int) -> None:
        assert self.judged_by is not None
        settings = self.stage.evaluation
        prompts = self.task.held_out[: settings.num_prompts]
        self.console.note(f"evaluating on {len(prompts)} held-out prompts x {settings.num_generations} completions ...")
        with self.judged_by.fixed():
            found = evaluate(
                self.policy,
                prompts,
                self.judged_by,
                num_generations=settings.num_generations,
                seed=settings.seed,
                progress=lambda done, total: self.console.busy("evaluating", done, total),
                divergence=self.stage.stage == "grpo" and self.stage.grpo.beta > 0,
            )
        record = found.to_record(step, "held-out", self.baseline)
        self.run_dir.append("evaluations.jsonl", record)
        self.console.evaluation(record)
        for name, (difference, low, high) in record.get("reward_differences", {}).items():
            mean = number(record["rewards"][name])
            self.console.note(f"  {name} {mean}, {number(difference)} [{number(low)}, {number(high)}] from the start")
        if not math.isnan(found.kl):
            bound = settings.kl_bound
            self.console.note(
                f"  KL to the start {number(found.kl)} nats per decision" + (f", bound {bound:g}" if bound else "")
            )
            if bound and found.kl > bound:
                self.console.warn(
                    f"the KL exceeds evaluation.kl_bound={bound:g}: lower the learning rate or raise beta"
                )
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
        self._film(0)
        return self.baseline

    def _save(self) -> None:
        root = self.run_dir.checkpoints
        checkpoint.save(root, self.loop, self.trained, self.learners)
        best = checkpoint.best_step(self.run_dir.lines("evaluations.jsonl"), checkpoint.steps(root))
        checkpoint.prune(root, self.stage.checkpoint.keep, best)


def _require_same_recipe(folder: Path, stage: Stage) -> None:
    """Raise RelgradError when the folder was made by another recipe.

    Where it goes and what watches it may change, and more steps may be asked for, unless the schedule depends on them. A
    folder without a checkpoint is no run yet: whoever mends a recipe that failed at its start just starts again.
    """
    file = folder / "recipe.yaml"
    if not file.is_file() or not checkpoint.steps(folder / "checkpoints"):
        return
    free = {"out", "trackers"}
    if stage.loop.lr_scheduler_type == "constant":
        free.add(f"{'grpo' if stage.stage == 'grpo' else 'sft'}.steps")
    new = _flat(stage.used)
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
