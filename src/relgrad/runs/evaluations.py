"""The evaluations of one stage: which part of the task is looked at when, what it is compared with, what is decided by it.

    before the first step   test prompts; validation prompts too where `patience` compares with them
    every `every` steps     validation prompts: patience and the best checkpoint are decided by these alone
    after the last step     test prompts, by the weights that the stage ends with; with `cooled`, also by the untrained start at the
                            temperature at which it is as far from itself (`cooled.json`)

A task of two parts has no test prompts of its own. Its validation prompts then serve for both and are evaluated once; the records
say "validation". Every record tells the step whose weights it is about: `weights`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from relgrad.core.errors import RelgradError
from relgrad.core.memory import spared
from relgrad.core.protocols import Tempered
from relgrad.core.ranks import Elsewhere, Lost, Ranks
from relgrad.core.run_folder import COOLED, RunDir, lines_until
from relgrad.core.types import Prompt
from relgrad.evaluation.cooled import cooled_start
from relgrad.evaluation.held_out import Evaluation, evaluate
from relgrad.monitor.console import Console, number
from relgrad.monitor.intervals import ends, ends_of
from relgrad.stages.kind import StageParts
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint

Part = Literal["validation", "test"]
FILE = "evaluations.jsonl"
CHOICES = ("validation", "held-out")
"""Names of the records that choices are made by; "held-out" is what run folders of relgrad 0.1 say."""


class Evaluations:
    """Evaluates a stage's policy, keeps the records, and answers what follows from them."""

    def __init__(
        self, stage: Stage, task: Task, parts: StageParts, folder: RunDir, console: Console, ranks: Ranks
    ) -> None:
        self.settings, self.parts, self.folder, self.console = stage.evaluation, parts, folder, console
        self.ranks = ranks
        count = stage.evaluation.num_prompts
        self.final: Part = "validation" if task.two_parts else "test"
        self.prompts: dict[Part, Sequence[Prompt]] = {"validation": task.validation[:count], "test": task.test[:count]}
        if self.settings.patience is not None and not self.scores("validation"):
            raise RelgradError(
                f"evaluation.patience={self.settings.patience} looks at validation prompts, and the task has none: give it some, "
                "or leave patience out"
            )
        if self.settings.cooled and self.scores(self.final):
            require_tempered(parts, stage)
        self.records = folder.lines(FILE)
        self.start: dict[Part, Evaluation] = {}
        self.trained: dict[Part, Evaluation] = {}

    def scores(self, part: Part) -> bool:
        """Whether there is something to evaluate in this part, and something to judge it by."""
        return self.parts.judged_by is not None and len(self.prompts[part]) > 0

    def begin(self, first: int) -> bool:
        """The evaluations before the first step; whether they were made now.

        Evaluations are compared with the first of their part. A run that goes on after step `first` reads what was made before.
        """
        parts: tuple[Part, ...] = ("test", "validation")
        for part in parts:
            if (records := self._recorded(part)) and self.scores(part):
                self.start[part] = self._read(records[0])
        if first > 0:
            return False
        due = {self.final, "validation"} if self.settings.patience is not None else {self.final}
        for part in parts:
            if part in due and self.scores(part):
                self._evaluate(part, 0, 0)
        return self.scores(self.final)

    def _read(self, record: dict[str, Any]) -> Evaluation:
        """The evaluation that a record is of. Raises RelgradError for a damaged one."""
        try:
            return Evaluation.from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise RelgradError(
                f"{self.folder.root / FILE}: the evaluation of step {record['step']} cannot be read "
                f"({type(error).__name__}: {error})"
            ) from error

    def during(self, step: int, last: bool) -> bool:
        """The evaluation after a step, where one is due; whether it was."""
        every = self.settings.every
        chooses = every > 0 and (last or step % every == 0)
        due = self.scores("validation") and (chooses or (last and self.final == "validation"))
        if due:
            self._evaluate("validation", step, step)
        return due

    def end(self, step: int, kept: int) -> None:
        """The score after training, by the weights of step `kept`, which are in place."""
        if not self.scores(self.final):
            return
        if self.final == "test":
            self._evaluate("test", step, kept)
        elif kept != step or "validation" not in self.trained:  # these prompts by these weights: known already
            record = next((r for r in self._recorded("validation") if r["step"] == kept), None)
            if record is not None and kept != step:
                self._keep({**record, "step": step})
                self.console.evaluation({**record, "step": step})
            if record is not None:
                self.trained["validation"] = self._read(record)
        if self.settings.cooled:
            try:
                self._cool(step)
            except (Lost, Elsewhere):
                raise
            except RelgradError as error:  # a control is no reason to lose what was trained
                self.console.warn(f"the cooled start could not be judged: {error}")

    def _cool(self, step: int) -> None:
        """Judge the start, cooled to where the policy is now, and keep the result as one record. Raises RelgradError."""
        policy, rewards, settings, prompts = (
            self.parts.policy,
            self.parts.judged_by,
            self.settings,
            self.prompts[self.final],
        )
        assert isinstance(policy, Tempered)
        assert rewards is not None
        if self.final not in self.trained:
            raise RelgradError("the last step has no evaluation")
        start, trained = self.start[self.final], self.trained[self.final]
        if math.isnan(trained.kl):
            raise RelgradError("the trained policy decided nothing, so that it has no distance to its start")
        self.console.note(f"cooling the untrained start to {number(trained.kl)} nats per decision from itself ...")
        advice = f"Lower evaluation.num_generations ({settings.num_generations}), or let shorter texts be written"
        with rewards.fixed(), spared("drawing completions of the cooled start", advice):
            cooled = cooled_start(
                policy,
                trained.kl,
                prompts,
                rewards,
                num_generations=settings.num_generations,
                seed=settings.seed,
                progress=lambda done, total: self.console.busy("cooling", done, total),
                ranks=self.ranks,
            )
        record = cooled.to_record(step, start, trained)
        self.folder.write_json(COOLED, record)
        self._say_cooled(record)

    def _say_cooled(self, record: Mapping[str, Any]) -> None:
        """The cooled start in words, beside the policy."""
        difference, low, high = record["trained_differences"]["score"]
        beyond = ends(low, high, number, over=record["over"], units=record["units"])
        nearer = (
            ""
            if record["reached"]
            else f", which is no further from itself than {number(record['kl'])} nats even there"
        )
        self.console.note(
            f"the start cooled to temperature {number(record['temperature'])}{nearer}: score {number(record['score'])} "
            f"{ends_of(record, number)}; the trained policy's score minus that: {number(difference)} {beyond}"
        )

    def _evaluate(self, part: Part, step: int, weights: int) -> None:
        rewards, settings, prompts = self.parts.judged_by, self.settings, self.prompts[part]
        assert rewards is not None
        self.console.note(f"evaluating on {len(prompts)} {part} prompts x {settings.num_generations} completions ...")
        advice = f"Lower evaluation.num_generations ({settings.num_generations}), or let shorter texts be written"
        with rewards.fixed(), spared("drawing completions to evaluate", advice):
            evaluation = evaluate(
                self.parts.policy,
                prompts,
                rewards,
                num_generations=settings.num_generations,
                seed=settings.seed,
                progress=lambda done, total: self.console.busy("evaluating", done, total),
                divergence=self.parts.divergence,
                ranks=self.ranks,
            )
        start, self.trained[part] = self.start.setdefault(part, evaluation), evaluation
        record = evaluation.to_record(step, part, None if start is evaluation else start, weights=weights)
        self._keep(record)
        self._say(record, evaluation)

    def _keep(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.folder.append(FILE, record)

    def _say(self, record: Mapping[str, Any], evaluation: Evaluation) -> None:
        self.console.evaluation(record)
        for name, (difference, low, high) in record.get("reward_differences", {}).items():
            interval = ends(low, high, number, over=evaluation.over, units=evaluation.units)
            mean = number(record["rewards"][name])
            self.console.note(f"  {name} {mean}, {number(difference)} from the start {interval}")
        if math.isnan(evaluation.kl):
            return
        bound = self.settings.kl_bound
        self.console.note(
            f"  KL to the start {number(evaluation.kl)} nats per decision" + (f", bound {bound:g}" if bound else "")
        )
        if bound and evaluation.kl > bound:
            self.console.warn(f"the KL exceeds evaluation.kl_bound={bound:g}: lower the learning rate or raise beta")

    def _recorded(self, part: Part) -> list[dict[str, Any]]:
        """The records of this part's prompts, in the order of steps."""
        names, ids = CHOICES if part == self.final == "validation" else (part,), [p.id for p in self.prompts[part]]
        return [r for r in records_of(self.folder) if r["name"] in names and r["ids"] == ids]

    # ------------------------------------------------------------------ what follows

    def validated(self, step: int) -> bool:
        """Whether the validation prompts were evaluated after a step."""
        return self.ranks.same(any(record["step"] == step for record in choices(records_of(self.folder))))

    def settled(self) -> bool:
        """Whether patience is at its end."""
        return self.ranks.same(checkpoint.settled(choices(records_of(self.folder)), self.settings.patience))

    def best(self, steps: Sequence[int]) -> int | None:
        """The step of the best evaluation among these; None where none of them was evaluated."""
        return self.ranks.same(best_of(self.folder, steps))


def records_of(folder: RunDir) -> list[dict[str, Any]]:
    """All evaluations of a stage. Raises RelgradError for a line that lacks what choices are made by."""
    path = folder.root / FILE
    records = lines_until(path, sys.maxsize)
    for line, record in enumerate(records, 1):
        score = record.get("score", "")
        whole = isinstance(record.get("name"), str) and isinstance(record.get("ids"), list)
        if not whole or not (score is None or isinstance(score, (int, float))):
            raise RelgradError(f"{path}, line {line} is no evaluation: {str(record)[:80]}")
    return records


def require_tempered(parts: StageParts, stage: Stage) -> None:
    """Raise RelgradError for a stage whose policy cannot be looked at cooler, or that measures no distance to its start."""
    if not isinstance(parts.policy, Tempered):
        raise RelgradError(
            f"evaluation.cooled=true: the law of a policy of kind {stage.policy.kind} has no temperature; leave it out"
        )
    if not parts.divergence:
        raise RelgradError(
            f"evaluation.cooled=true: a {stage.called} stage does not measure how far its policy is from its start; leave it out"
        )
    if (top_p := stage.policy.options.get("top_p", 1.0)) < 1:
        raise RelgradError(
            f"evaluation.cooled=true with policy.top_p={top_p:g}: what top_p leaves out depends on the temperature, so that the "
            "distance of a cooled start from itself cannot be measured on it. Set policy.top_p to 1, or leave evaluation.cooled out"
        )
    with parts.policy.start_at(parts.policy.temperature):  # a policy that cannot do it says so now, not after training
        pass


def choices(records: Sequence[dict[str, Any]], until: int | None = None) -> list[dict[str, Any]]:
    """The records that choices are made by, up to step `until`: of validation prompts, each by the weights of its own step."""
    return [
        record
        for record in records
        if record["name"] in CHOICES
        and record.get("weights", record["step"]) == record["step"]
        and (until is None or record["step"] <= until)
    ]


def best_of(folder: RunDir, steps: Sequence[int]) -> int | None:
    """The step, among these, whose weights had the best validation score; None where none of them was evaluated."""
    return checkpoint.best_step(choices(records_of(folder)), steps)


def finished(folder: RunDir, total: int, patience: int | None) -> bool:
    """Whether a stage ended: its newest checkpoint is of the last step, or of the step at which patience ended.

    Only what was recorded up to that checkpoint counts. The last checkpoint is written when everything else was done, so an
    evaluation after it belongs to a process that was stopped before it could keep the best weights. A checkpoint that says that
    its stage has not ended was saved when the end failed.
    """
    newest = checkpoint.latest(folder.checkpoints)
    if newest is None or checkpoint.ended(newest) is False:
        return False
    step = checkpoint.step_of(newest)
    return step >= total or checkpoint.settled(choices(records_of(folder), step), patience)
