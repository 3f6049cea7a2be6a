"""The stage that trains a judge of what the policy writes, and audits it: sections `judge` and `sft`.

The audit looks at validation prompts: whether a judge may reward is a choice, and test prompts are for no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import model_validator

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Audited
from relgrad.core.randomness import derived, generator
from relgrad.core.run_folder import RunDir, require_writable, write_json
from relgrad.core.settings import Component, settings_of
from relgrad.networks.weights.folder import newest
from relgrad.stages.examples import Examples
from relgrad.stages.kind import Display, Kind, Materials, StageParts, build_policy
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint
from relgrad.training.sft import Sft, SftSettings

FILE = "audit.json"


class Settings(Stage):
    """A stage that trains the judge of its `judge` section, as its `sft` section says."""

    judge: Component | None = None
    sft: SftSettings = SftSettings()

    @model_validator(mode="after")
    def _judges(self) -> Settings:
        if self.judge is None:
            raise ValueError("judge is missing: a judge stage needs to know which, for example `judge: {kind: refill}`")
        return self


def build(stage: Settings, materials: Materials) -> StageParts:
    """The policy only writes; the judge is what is trained. Raises RelgradError where there is too little to audit on."""
    policy = build_policy(stage, materials.start)
    assert stage.judge is not None
    module = registry.find("judges", stage.judge.kind)
    judge = module.build(settings_of(stage.judge, module.Settings, "judge"), seed(stage), policy)
    judge.require(materials.task.validation)
    loop = Sft(judge, Examples(materials.task, None), stage.sft, seed=seed(stage), ranks=materials.ranks)
    return StageParts(loop=loop, trained=judge, policy=policy, finish=partial(finish, stage, judge, materials.task))


def seed(stage: Stage) -> int:
    """Another seed for every label, so that two judges of a run share no random number."""
    return derived(stage.seed, "judge", stage.called)


def finish(stage: Settings, judge: Audited, task: Task, folder: RunDir, display: Display) -> None:
    """Audit the judge and write what was found to audit.json."""
    display.note("auditing the judge on validation prompts ...")
    draw = generator(stage.evaluation.seed, "audit")
    figures = judge.audit(task.validation, draw, lambda done, total: display.busy("auditing", done, total))
    folder.write_json(FILE, figures)
    for line in notes(figures):
        display.note(line)


def examine(
    source: Path,
    stage: Stage | None,
    policy: Any,
    task: Task,
    draw_seed: int,
    out: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Audit the judge at `source` on what a policy writes, and save it with its audit there, or in `out`.

    `stage` is the judge stage whose folder `source` is; without one it is a refill judge's folder or an original .pt file. Raises
    RelgradError for a file without `out`, a folder that cannot be written, and what the judge raises for a policy it cannot read.
    """
    target = Path(out) if out is not None else newest(source)
    if target.is_file():
        raise RelgradError(
            f"{source}: an audit cannot be written into a .pt file; name a folder for the judge with --out"
        )
    require_writable(target)
    component = stage.judge if isinstance(stage, Settings) and stage.judge is not None else Component(kind="refill")
    module = registry.find("judges", component.kind)
    is_checkpoint = (target / checkpoint.SUMS).is_file()
    if is_checkpoint:
        checkpoint.require_undamaged(target)
    judge = module.build(settings_of(component, module.Settings, "judge"), 0, policy, start=source)
    figures: dict[str, Any] = judge.audit(task.validation, generator(draw_seed, "audit"), progress)
    target.mkdir(parents=True, exist_ok=True)
    judge.save(target)
    if is_checkpoint:
        checkpoint.seal(target)
    if out is None and stage is not None:
        write_json(source / FILE, figures)
    return figures


def notes(figures: Mapping[str, Any]) -> list[str]:
    """An audit's numbers in words; tables are left to the report."""
    single = {name: value for name, value in figures.items() if not isinstance(value, (list, tuple, dict))}
    return [f"audit: {name.replace('_', ' ')} {_shown(value)}" for name, value in single.items()]


def _shown(value: Any) -> str:
    if value is None or value != value:  # nan is not itself
        return "unknown"
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def describe(stage: Settings) -> str:
    return f"{stage.sft.steps} steps{stage.sft.in_epochs} of a judge on {stage.sft.batch_size} examples"


KIND = Kind(
    loop="sft",
    build=build,
    describe=describe,
    seed=seed,
    trains_policy=False,
    own_label=True,
    components={"judge": "judges"},
)
