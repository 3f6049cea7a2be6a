"""Recipes become runs: every stage built, resumed, trained, evaluated, saved and reported."""

from __future__ import annotations

import errno
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from relgrad.core.allocator import keep_freed_memory
from relgrad.core.errors import RelgradError, ServerFailed, Stopped
from relgrad.core.memory import OutOfMemory
from relgrad.core.protocols import Noted
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.run_folder import RunDir
from relgrad.core.types import StepRecord
from relgrad.monitor.console import Console
from relgrad.monitor.report import write_report
from relgrad.runs import about, gate, hand_off, named_files
from relgrad.runs.build import linked_rewards, load_task, require_columns, require_rewards, resolve, with_epochs_counted
from relgrad.runs.course import Course
from relgrad.runs.environment import capture
from relgrad.runs.evaluations import finished
from relgrad.runs.limits import Limits, watched
from relgrad.runs.lock import held
from relgrad.runs.named_stages import stage_folders
from relgrad.runs.recipe import Recipe
from relgrad.runs.same_recipe import require_same_recipe
from relgrad.runs.starts import checkpoint_to_start_from, first_fresh, starts_of
from relgrad.runs.tracking import open_trackers
from relgrad.runs.training_log import TrainingLog
from relgrad.runs.yaml_text import write_yaml
from relgrad.stages.kind import Materials, StageParts, kind_of, loop_settings
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint
from relgrad.training.grpo import Loop, train

UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


# ---------------------------------------------------------------------- running


def run_recipe(
    recipe: Recipe,
    *,
    fresh: bool = False,
    redo: str | None = None,
    accept_changes: bool = False,
    ranks: Ranks = ALONE,
) -> list[Path]:
    """Run every stage of a recipe, each from where it starts (starts.py); finished stages are skipped, others resumed.

    `fresh` starts over, `redo` the stage of that label and those that go on from it, keeping the others. Every process of `ranks`
    calls it, and the first one writes. Returns the stage folders. Raises RelgradError when another process writes there; when a
    folder that is not started over holds a run of another recipe, or one whose files have changed since (unless `accept_changes`);
    where a stage's policy is not what the stage it starts from ended with; and for a reward of a later stage that may not serve, as
    soon as that is known. Raises GateFailed after a stage that did not reach its `evaluation.gate`, and Stopped where SIGTERM or
    `max_hours` ended it before its end.
    """
    keep_freed_memory()
    recipe = resolve(recipe)
    folders = stage_folders(recipe)
    anew = first_fresh(recipe, fresh, redo)
    with watched(ranks) as limits, held([folder.parent for folder in folders], ranks) as require_held:
        ranks.together(lambda: _require_same(recipe, folders, anew, accept_changes) if ranks.first else None)
        recipe = ranks.together(partial(_with_epochs_counted, recipe))
        for number in sorted(anew):
            RunDir(folders[number], writes=ranks.first).clear()
        ranks.wait()
        _run_stages(recipe, folders, limits, require_held)
    return folders


def _require_same(recipe: Recipe, folders: Sequence[Path], anew: Container[int], accept_changes: bool) -> None:
    """Raise RelgradError where a folder was begun with another recipe or other files. Accepted changes are noted there."""
    for number, (folder, stage) in enumerate(zip(folders, recipe.stages, strict=True)):
        if number in anew:
            continue
        require_same_recipe(folder, stage)
        if not checkpoint.steps(folder / "checkpoints"):
            continue
        if not accept_changes:
            named_files.require_unchanged(folder, stage)
        elif changed := named_files.changes(folder, stage):
            named_files.write(RunDir(folder), stage, changed)


def _with_epochs_counted(recipe: Recipe) -> Recipe:
    """All of them at once: a task without an end is refused before another stage trains."""
    return Recipe(name=recipe.name, stages=tuple(with_epochs_counted(stage) for stage in recipe.stages))


def _run_stages(recipe: Recipe, folders: Sequence[Path], limits: Limits, require_held: Callable[[], None]) -> None:
    starts = starts_of(recipe)
    for i, (folder, stage) in enumerate(zip(folders, recipe.stages, strict=True)):
        if limit := limits.reached(stage.max_hours):
            raise Stopped(f"{limit}, before the stage {folder}; nothing is lost")
        StageRun(stage, folder, starts[i], limits, require_held).run()
        limits.ranks.together(partial(gate.require_passed, RunDir(folder), stage))
        limits.ranks.together(partial(require_rewards, recipe, i))
    if len(folders) > 1 and limits.ranks.first:
        report(folders[0].parent)


def report(folder: Path, say: Callable[[str], None] = print) -> None:
    """Write a report and say where it is. One that cannot be written is said so too: it is for people, and ends no run."""
    try:
        say(f"report: {write_report(folder)}")
    except Exception as error:
        say(
            f"no report could be written ({type(error).__name__}: {error}); the run itself has everything. `relgrad report "
            f"{folder}` writes one"
        )


class StageRun:
    """One stage of whatever kind, from its settings and folder: builds, resumes, trains, evaluates, saves, reports."""

    def __init__(
        self, stage: Stage, folder: Path, start: Path | None, limits: Limits, require_held: Callable[[], None]
    ) -> None:
        self.stage, self.start, self.require_held = stage, start, require_held
        self.limits, self.ranks = limits, limits.ranks
        self.run_dir = RunDir(folder, writes=self.ranks.first)
        self.log = TrainingLog(self.run_dir)
        self.total: int = loop_settings(stage).steps
        self.title = f"{stage.name}/{folder.name}"

    def run(self) -> None:
        """Train to the last step, unless that was done before, or until a limit is reached, which raises Stopped.

        Raises RelgradError when the folder cannot be written.
        """
        with self.log:
            self._run_or_skip()

    def _run_or_skip(self) -> None:
        try:
            if self.ranks.same(finished(self.run_dir, self.total, self.stage.evaluation.patience)):
                print(f"{self.title}: finished before ({self.run_dir.root}); --fresh starts over")
                if not (self.run_dir.root / "report.html").is_file():  # killed after the last checkpoint
                    self._report()
                return
            self._run()
        except OutOfMemory as error:
            raise RelgradError(
                f"{self.title}: {error}. {self._kept()}; the same command goes on from it, also with other micro_batch_tokens and "
                "gradient_checkpointing. Other settings make another run, which a new `name` starts"
            ) from error
        except ServerFailed as error:
            raise RelgradError(f"{self.title}: {error}. {self._kept()}; the same command goes on from it") from error
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise RelgradError(
                f"{self.run_dir.root} cannot be written: {error}. {self._kept()}. Free some space (or change `out`) and start the "
                "same command again"
            ) from error

    def _kept(self) -> str:
        saved = checkpoint.steps(self.run_dir.checkpoints)
        return f"The newest complete checkpoint is step {saved[-1]}" if saved else "There is no checkpoint yet"

    def _run(self) -> None:
        self._say(f"{self.title}: loading the task and the policy ...")
        task, parts = self.ranks.together(self._build)
        newest = checkpoint.latest(self.run_dir.checkpoints)
        if newest is not None:
            checkpoint.restore(newest, parts.loop, parts.trained, parts.learners, self.ranks)
        first = parts.loop.step
        set_aside = self.run_dir.rewind(first if newest is not None else -1)
        self._write_head(task, parts, begun=newest is not None)
        mirrors = self.stage.trackers if self.ranks.first else ()
        trackers = open_trackers(
            mirrors, self.run_dir, title=self.title, config=self.stage.used, first_step=first, warn=self._say
        )
        self.ranks.wait()  # from here on the folder holds what happened up to `first`, for everybody
        console = Console(self.title, self.total, first_step=first, figures=parts.figures, transcript=self.log.write)
        try:
            with trackers, console:
                own = parts.policy.notes if isinstance(parts.policy, Noted) else ()
                for note in (*set_aside, *own, *parts.notes):
                    console.note(note)
                if first:
                    console.note(f"resumed after step {first}")
                self._train(Course(self.stage, task, parts, self.run_dir, (trackers, console), self.limits), parts.loop)
        except Stopped:
            self._report()
            self.ranks.wait()  # until the first one has written it
            raise
        for rewards in {id(r): r for r in (parts.rewards, parts.judged_by) if r is not None}.values():
            rewards.close()
        self._report()

    def _train(self, course: Course, loop: Loop) -> None:
        first = loop.step
        course.begin(first)
        try:
            if not (first and course.conclude(first)):
                train(loop, partial(self._after, course))
        except (OutOfMemory, ServerFailed):
            with suppress(RelgradError):  # there may be too little memory for this too; the message says what there is
                course.keep()
            raise

    def _after(self, course: Course, record: StepRecord) -> bool:
        self.require_held()
        return course.after(record)

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self.log.write(text)

    def _report(self) -> None:
        if self.ranks.first:
            report(self.run_dir.root, self._say)

    def _build(self) -> tuple[Task, StageParts]:
        start = None if self.start is None else checkpoint_to_start_from(self.start)
        named_files.require_undamaged(self.stage)
        task = load_task(self.stage)
        require_columns(self.stage, task)
        rewards = partial(linked_rewards, run=self.run_dir.root.parent)
        parts = kind_of(self.stage).build(self.stage, Materials(task, start, rewards, self.ranks))
        if start is not None:
            hand_off.check(start, self.stage, parts.policy)
        return task, parts

    def _write_head(self, task: Task, parts: StageParts, begun: bool) -> None:
        self.run_dir.write_text("recipe.yaml", write_yaml(self.stage.used))
        if self.ranks.first and not (begun and (self.run_dir.root / named_files.FILE).exists()):
            named_files.write(self.run_dir, self.stage)
        self.run_dir.write_json("environment.json", capture() | {"processes": self.ranks.size})
        self.run_dir.write_json(about.FILE, about.about(self.stage, task, parts))
