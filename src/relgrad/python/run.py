"""What came of a run, for the script that started it, or for another one: scores, samples, figures, the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relgrad.core.errors import RelgradError

if TYPE_CHECKING:
    import pandas
    import torch

    from relgrad.core.protocols import Policy


class Run:
    """A run folder, or that of one of its stages, by its path; `stages` are the folders of its stages, in their order.

    What it reads is there for any run, also one that the command line made. Rewards without a place to import them from are there
    only in the process that started the run.
    """

    def __init__(self, folder: str | Path, stages: Sequence[Path] | None = None) -> None:
        """Raises RelgradError for a folder that holds no run."""
        from relgrad.core.run_folder import refuse_folder_of_runs, stages_in

        self.folder = Path(folder)
        alone = [self.folder] if (self.folder / "recipe.yaml").is_file() else stages_in(self.folder)
        self.stages = list(alone if stages is None else stages)
        if not self.stages:
            refuse_folder_of_runs(self.folder)
            raise RelgradError(f"{self.folder}: no run folder; there is no stage with a recipe.yaml in it")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def report(self) -> Path:
        """The HTML report: of the whole run where it has several stages."""
        whole = self.folder / "report.html"
        return whole if whole.is_file() else self.stages[-1] / "report.html"

    def evaluate(self, part: Literal["validation", "test"] = "test", **settings: Any) -> dict[str, Any]:
        """The score of the trained policy on the task's validation or test prompts, as a line of evaluations.jsonl has it.

        Where the task has no test part of its own, they are its validation prompts, and the record's `name` says so. `settings`
        change the recipe: evaluate(**{"evaluation.num_prompts": 500}). Raises RelgradError for another part.
        """
        from relgrad.commands.bar import Progress, with_bar
        from relgrad.runs.use import evaluate_run

        if part not in ("validation", "test"):
            raise RelgradError(f"part={part!r}: it is test or validation")

        def work(progress: Progress) -> dict[str, Any]:
            return evaluate_run(
                str(self.folder), _overrides(settings), lambda done, total: progress("evaluating", done, total), part
            )

        return with_bar("loading the policy", work)

    def sample(self, prompts: str | Sequence[str] = (), n: int = 4, **settings: Any) -> list[dict[str, Any]]:
        """`n` completions per prompt, each with `prompt`, `completion`, `stop`, `logp` (nats).

        Without prompts, of the first test prompts, scored by every reward.
        """
        from relgrad.runs.use import sample

        if n < 1:
            raise RelgradError(f"n={n}: at least one completion per prompt")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return list(sample(str(self.folder), texts, n, _overrides(settings)))

    def compare(self, *others: Run | str | Path, on: Run | str | Path | None = None, **settings: Any) -> dict[str, Any]:
        """This run against other runs, recipes or adapters, paired by prompt, as `relgrad compare --json` writes it.

        `on` is the one whose prompts and rewards all are measured by; without it each has its own, and they must agree.
        """
        from relgrad.runs.compare import Conditions, compare_sources

        yardstick = None if on is None else _source(on)
        sources = [_source(other) for other in (self, *others)]
        return compare_sources(sources, _overrides(settings), Conditions(yardstick), lambda *_: None)

    @property
    def metrics(self) -> pandas.DataFrame:
        """The figures of every step of every stage, one row a step, with the stage's folder as `stage`.

        Raises RelgradError without pandas.
        """
        from relgrad.core.run_folder import read_lines

        try:
            import pandas
        except ImportError:
            raise RelgradError("run.metrics is a data frame of pandas: pip install pandas") from None
        rows = [{"stage": stage.name, **row} for stage in self.stages for row in read_lines(stage / "metrics.jsonl")]
        return pandas.DataFrame(rows)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation of the last stage, in their order: the first is of its start, the last of its end."""
        from relgrad.core.run_folder import read_lines

        return list(read_lines(self.stages[-1] / "evaluations.jsonl"))

    @property
    def policy(self) -> Policy:
        """The trained policy, loaded anew."""
        from relgrad.runs.use import open_source
        from relgrad.stages.kind import build_policy

        return build_policy(*open_source(str(self.folder), ()))

    @property
    def model(self) -> torch.nn.Module:
        """The trained network, loaded anew: of an autoregressive policy the model of transformers, or of peft.

        Raises RelgradError for a policy that is no single network.
        """
        from relgrad.core.protocols import HasNetwork

        policy = self.policy
        if not isinstance(policy, HasNetwork):
            raise RelgradError(f"{self.folder}: a {type(policy).__name__} is no single network; use run.policy")
        return policy.model


def _source(run: Run | str | Path) -> str:
    """What the command line calls a run, a recipe or an adapter."""
    return str(run.folder if isinstance(run, Run) else run)


def _overrides(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line has them."""
    import json

    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
