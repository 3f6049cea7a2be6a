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
    """A run folder, by its path; `stages` are the folders of its stages, in their order.

    What it reads is there for any run, also one that the command line made. Rewards without a place to import them from are there
    only in the process that started the run.
    """

    def __init__(self, folder: str | Path, stages: Sequence[Path] | None = None) -> None:
        """Raises RelgradError for a folder that holds no run."""
        from relgrad.core.run_folder import refuse_folder_of_runs, stages_in

        self.folder = Path(folder)
        self.stages = list(stages_in(self.folder) if stages is None else stages)
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

        `settings` change the recipe: evaluate(**{"evaluation.num_prompts": 500}).
        """
        from relgrad.runs.use import evaluate_run

        return evaluate_run(str(self.folder), _overrides(settings), part=part)

    def sample(self, prompts: str | Sequence[str] = (), n: int = 4, **settings: Any) -> list[dict[str, Any]]:
        """`n` completions per prompt, each with `prompt`, `completion`, `stop`, `logp` (nats).

        Without prompts, of the first test prompts, scored by every reward.
        """
        from relgrad.runs.use import sample

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return list(sample(str(self.folder), texts, n, _overrides(settings)))

    def compare(self, *others: Run | str | Path, **settings: Any) -> dict[str, Any]:
        """This run against other runs, recipes or adapters, paired by prompt, as `relgrad compare --json` writes it."""
        from relgrad.runs.compare import Conditions, compare_sources

        sources = [str(other.folder if isinstance(other, Run) else other) for other in (self, *others)]
        return compare_sources(sources, _overrides(settings), Conditions(), lambda *_: None)

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


def _overrides(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line has them."""
    import json

    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
