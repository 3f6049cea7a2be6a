"""Whether a run folder holds a run of this recipe: only then is it gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.secrets import without_secrets
from relgrad.runs.build import resolve_stage
from relgrad.runs.read_stage import written_recipe
from relgrad.runs.recipe import parse_recipe
from relgrad.stages.kind import kind_of, loop_settings
from relgrad.stages.settings import Stage
from relgrad.training import checkpoint

WHERE_A_SERVER_IS = (
    "url", "model", "key", "adapters", "adapters_there", "tolerance", "deadline", "timeout", "retries", "concurrency",
)  # fmt: skip
"""Of `grpo.remote`: a run that goes on may do so with another server, which is examined anew."""


def require_same_recipe(folder: Path, stage: Stage) -> None:
    """Raise RelgradError when the folder was made by another recipe.

    Where it goes, what watches it, what is compared afterwards, what it has to reach and how much memory it takes may change, and
    more steps may be asked for, unless the schedule depends on them. A setting that the folder's recipe does not have, because it
    is newer, has its default there. A folder without a checkpoint is no run yet: whoever mends a recipe that failed at its start
    just starts again.
    """
    file = folder / "recipe.yaml"
    if not file.exists() or not checkpoint.steps(folder / "checkpoints"):
        return
    free = {
        "out",
        "trackers",
        "max_hours",
        f"{kind_of(stage).loop}.micro_batch_tokens",
        "policy.gradient_checkpointing",
        *(f"grpo.remote.{place}" for place in WHERE_A_SERVER_IS),
    }
    if loop_settings(stage).lr_scheduler_type == "constant":
        free |= {f"{kind_of(stage).loop}.{length}" for length in ("steps", "epochs")}
    used, written = _flat(stage.used), _flat(written_recipe(file))
    if used != written:
        written = _flat(_with_defaults(file))
    compared = {key for key in {*used, *written} - free if not key.startswith(("evaluation.suite", "evaluation.gate"))}
    differing = sorted(key for key in compared if used.get(key) != written.get(key))
    if differing:
        shown = "; ".join(f"{key}: {written.get(key)!r} there, {used.get(key)!r} now" for key in differing[:5])
        raise RelgradError(
            f"{folder} holds a run of another recipe ({shown}). Give this one another name (name=...), or start over "
            f"with --fresh; --from {folder.name.partition('-')[2]} does so and keeps the stages before this one"
        )


def _with_defaults(file: Path) -> dict[str, Any]:
    """The settings of a stage's recipe.yaml, with the defaults of those it does not have; as written where it is legal no more."""
    written = written_recipe(file)
    try:
        return resolve_stage(parse_recipe(written, source=str(file)).stages[0]).used
    except RelgradError:
        return written


def _flat(recipe: Any) -> dict[str, Any]:
    """Every setting by its dotted name. Of secrets it is known whether there is one, and not which."""
    return _leaves(without_secrets(recipe, references=True), "")


def _leaves(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in _leaves(inner, f"{path}.{key}" if path else key).items()
        }
    return {path: value}
