"""The course of a stage between its steps: log, warn, evaluate, end, save."""

from __future__ import annotations

from pathlib import Path

from relgrad.core.errors import RelgradError, Stopped
from relgrad.core.protocols import Filmed, Tracker
from relgrad.core.randomness import generator
from relgrad.core.run_folder import RunDir
from relgrad.core.types import StepRecord
from relgrad.evaluation.held_out import film
from relgrad.monitor.console import Console
from relgrad.monitor.diagnose import diagnose
from relgrad.runs import hand_off
from relgrad.runs.evaluations import Evaluations
from relgrad.runs.limits import Limits
from relgrad.stages.kind import StageParts, kind_of, loop_settings
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint

FILMED = 4
"""Test prompts whose filling in is kept for the report, before and after."""


class Course:
    """What happens before the first step (`begin`) and after every step (`after`), in all processes; the first one writes."""

    def __init__(
        self,
        stage: Stage,
        task: Task,
        parts: StageParts,
        folder: RunDir,
        voices: tuple[Tracker, Console],
        limits: Limits,
    ) -> None:
        self.stage, self.task, self.parts, self.folder = stage, task, parts, folder
        self.limits, self.ranks = limits, limits.ranks
        self.trackers, self.console = voices
        self.total: int = loop_settings(stage).steps
        self.evaluations = Evaluations(stage, task, parts, folder, self.console, self.ranks)
        self.records = folder.lines("metrics.jsonl")
        self.warned = {warning.get("name") for warning in folder.lines("warnings.jsonl")}

    def begin(self, first: int) -> None:
        """Evaluate before the first step, or read what was found then; `first` steps are done already.

        Raises Stopped where a limit was reached before or meanwhile.
        """
        self._stop_at_limit(first)
        if self.evaluations.begin(first):
            self._film(0)
        self._stop_at_limit(first)

    def _stop_at_limit(self, first: int) -> None:
        if limit := self.limits.reached(self.stage.max_hours):
            raise Stopped(f"{limit}, after step {first} of {self.total} of {self.folder.root}; nothing is lost")

    def after(self, record: StepRecord) -> bool:
        """Log, evaluate, save; whether this was the last step. Raises Stopped where a limit is reached and others are left."""
        step, self.limits.stepped = record.step, True
        self.parts.after_step(record)
        self._log(record)
        evaluated = self._evaluate(step, step == self.total)
        if step == self.total or (evaluated and self.evaluations.settled()):
            self._end(step)
            return True
        self._warn(step)
        limit, every = self.limits.reached(self.stage.max_hours), self.stage.checkpoint.every
        if evaluated or limit or (every and step % every == 0):
            self._save()
        if limit:
            raise Stopped(f"{limit}, after step {step} of {self.total} of {self.folder.root}; its checkpoint is saved")
        return False

    def conclude(self, step: int) -> bool:
        """End a stage whose last step was saved before its end failed; False where there is more to train."""
        if step < self.total and not self.evaluations.settled():
            return False
        if not self.evaluations.validated(step):
            self._evaluate(step, last=True)
        self._end(step)
        return True

    def _evaluate(self, step: int, last: bool) -> bool:
        """The evaluation after a step, where one is due; whether it was. Where it fails, nothing that was learnt is lost."""
        try:
            return self.evaluations.during(step, last)
        except RelgradError:
            self._warn(step)
            self._save()
            raise

    def keep(self) -> None:
        """Save what was learnt since the last checkpoint, for a run that ends before its time.

        Of several processes none knows whether the others still answer, so that nothing is saved.
        """
        step = self.parts.loop.step
        if self.ranks.size == 1 and step and step not in checkpoint.steps(self.folder.checkpoints):
            self._save()

    def _log(self, record: StepRecord) -> None:
        step = record.step
        self.trackers.log(step, record.metrics)
        self.console.log(step, record.metrics)
        self.records.append({"step": step, **record.metrics})
        if self.ranks.first and (samples := [{"step": step, **sample} for sample in self.parts.samples()]):
            self.folder.write_samples(step, samples)
            self.console.samples(step, samples)

    def _warn(self, step: int) -> None:
        """Say what goes wrong, each only once; after the evaluations of the step, which may refute it."""
        for warning in diagnose(self.records, self.stage.used, self.evaluations.records):
            if warning.name not in self.warned:
                self.warned.add(warning.name)
                self.folder.append("warnings.jsonl", {**vars(warning), "step": step})
                self.console.warn(f"{warning.name}: {warning.evidence}. {warning.advice}", warning.severity)

    def _end(self, step: int) -> None:
        """Put the weights in place that are kept, say how good they are, and save them.

        Where that fails, the last step is saved as any other: the same command tries its end again.
        """
        if step < self.total:
            self.console.note(f"validation score stopped improving: the stage ends after step {step} of {self.total}")
        kept, last = self._take_best(step)
        try:
            self.evaluations.end(step, kept)
            self.parts.finish(self.folder, self.console)
            if self.evaluations.scores(self.evaluations.final):
                self._film(step)
            self._warn(step)
        except RelgradError:
            self._warn(step)
            if last is not None:
                self.parts.trained.load(last)
            self._save()
            raise
        if kind_of(self.stage).trains_policy:
            hand_off.write(self.folder, self.stage, self.task, self.parts.policy, step)
        self._save(last, ended=True)

    def _take_best(self, step: int) -> tuple[int, Path | None]:
        """(the step whose weights are kept, where those of the last step were set aside): with patience the best are loaded."""
        if self.stage.evaluation.patience is None:
            return step, None
        root = self.folder.checkpoints
        best = self.evaluations.best([*checkpoint.steps(root), step])
        if best is None or best == step:
            return step, None
        checkpoint.require_undamaged(checkpoint.folder_of(root, best), trainer=False)
        last = checkpoint.set_aside(root, self.parts.trained, self.ranks)
        self.parts.trained.load(checkpoint.folder_of(root, best))
        self.console.note(f"the weights of step {best} scored best and are kept as the result")
        return best, last

    def _film(self, step: int) -> None:
        """Policies that write in several steps are filmed doing so, on the same prompts and random numbers every time."""
        policy, rewards = self.parts.policy, self.parts.filmed_by
        if rewards is None or not isinstance(policy, Filmed) or not self.ranks.first:
            return
        draw = generator(self.stage.seed, "film")
        with rewards.fixed():
            for one in film(policy, self.task.test[:FILMED], 1, draw, rewards):
                self.folder.append("films.jsonl", {"step": step, **one})

    def _save(self, last: Path | None = None, ended: bool = False) -> None:
        root = self.folder.checkpoints
        checkpoint.save(root, self.parts.loop, self.parts.trained, self.parts.learners, self.ranks, last, ended)
        best = self.evaluations.best(checkpoint.steps(root))
        if self.ranks.first:
            checkpoint.prune(root, self.stage.checkpoint.keep, best)
