"""A Python configuration file of the diffusion GPT's GRPO trainer as a recipe. The file is parsed, and nothing in it is run.

Read are assignments of plain values at the top level (`group_size = 8`); what a computed value would be is not known, and whatever
stands inside an `if`, a loop or a function is not read. What has a name of its own here is translated by aliases.py.
"""

from __future__ import annotations

import ast
import difflib
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.runs.aliases import ELSEWHERE, NAMES, PIECES

logger = logging.getLogger(__name__)

OF_GRPO = ("group_size", "kl_beta", "judge_checkpoint", "generator_checkpoint")
"""A file with none of them configures something else."""
SAME_NAME = ("seed", PIECES)
READ_HERE = (
    "dataset", "block_size", "enable_line_aligned_sequences", "unmasking_stages", "validation_stages", "reference_checkpoint",
)  # fmt: skip
"""What becomes a setting, or several, in `recipe_of`."""
WITHOUT_COUNTERPART = {
    "backend", "batches_per_file", "compile", "data_cache_files", "data_prefer_queue", "data_stream_verbose",
    "data_wait_sleep_seconds", "data_wait_timeout_seconds", "eval_interval", "eval_iters", "eval_only", "ignore_index", "init_from",
    "log_interval", "max_backlog_files", "model_mode", "sample_interval", "sleep_seconds", "target_size",
    "use_all_stages_for_training", "wandb_project", "wandb_run_name",
}  # fmt: skip
"""Left out, and said so: they change nothing that is trained."""
KNOWN = {*NAMES, *SAME_NAME, *READ_HERE, *WITHOUT_COUNTERPART}
BERT = ("random", "sticky")
"""Masks that the original applies as BERT does, 80/10/10."""


def load(path: Path) -> dict[str, Any]:
    """The file as a recipe of one GRPO stage, in plain data.

    Raises RelgradError for a file that is no Python, configures no GRPO run, computes a value that matters, or says what has no
    place here.
    """
    values, computed = assignments(path)
    if not any(name in values for name in OF_GRPO):
        raise RelgradError(
            f"{path}: no plain assignment of {', '.join(OF_GRPO)}, so it is no configuration of a GRPO run. Other settings, and "
            "those in a dictionary, can be given one by one: `relgrad run fill group_size=16`"
        )
    if open_questions := [name for name in computed if name in KNOWN - WITHOUT_COUNTERPART]:
        name = open_questions[0]
        raise RelgradError(
            f"{path}, line {computed[name]}: {name} is computed, and the file is not run. Write its value there"
        )
    for name in values:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1, cutoff=0.6)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RelgradError(
                f"{path}: {name}={values[name]!r} is not understood.{hint} Known are {', '.join(sorted(KNOWN))}"
            )
    left_out = sorted(name for name in values if name in WITHOUT_COUNTERPART)
    if left_out:
        logger.warning("%s: left out, since they change nothing that is trained: %s", path, ", ".join(left_out))
    return recipe_of({name: value for name, value in values.items() if value is not None}, str(path))


def assignments(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """(name -> value, name -> line of what is computed) of the assignments at a Python file's top level.

    The last assignment of a name counts. Raises RelgradError for a file that is no Python.
    """
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise RelgradError(f"{path}: not a Python file: {error}") from None
    values: dict[str, Any] = {}
    computed: dict[str, int] = {}
    for node in tree.body:
        for name in _assigned(node):
            values.pop(name, None)
            computed[name] = node.lineno
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                value = ast.literal_eval(node.value)
                for target in targets:
                    if isinstance(target, ast.Name):
                        values[target.id] = value
                        computed.pop(target.id)
    return values, computed


def _assigned(node: ast.stmt) -> list[str]:
    """The names that a statement gives a value: also by `+=`, and several at once."""
    if isinstance(node, ast.Assign):
        targets: list[ast.expr] = node.targets
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.AnnAssign) and node.value is not None):
        targets = [node.target]
    else:
        targets = []
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def recipe_of(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The recipe that these settings describe, under the originals' names where aliases.py knows them.

    Raises RelgradError for another reference than the generator itself, and for masks that are no list of mappings.
    """
    task: dict[str, Any] = {"kind": "masked_text"}
    policy: dict[str, Any] = {"kind": "fill_in"}
    recipe: dict[str, Any] = {"policy": policy, "task": task, "grpo": {"lr_scheduler_type": "cosine"}}
    recipe |= {name: value for name, value in values.items() if name in NAMES or name in SAME_NAME}
    if "dataset" in values:
        policy["text"] = task["text"] = f"data/{values['dataset']}/input.txt"
    if "block_size" in values:
        policy["block_size"] = task["length"] = values["block_size"]
    if "enable_line_aligned_sequences" in values:
        task["aligned"] = "line" if values["enable_line_aligned_sequences"] else "window"
    for original_key, own_key in (("unmasking_stages", "stages"), ("validation_stages", "held_out_stages")):
        if original_key in values:
            task[own_key] = _masks(values[original_key], f"{source}: {original_key}")
    reference = values.get("reference_checkpoint")
    if reference is not None and reference != values.get("generator_checkpoint"):
        raise RelgradError(f"{source}: reference_checkpoint={reference!r}: {ELSEWHERE['reference_checkpoint']}")
    return recipe


def _masks(stages: Any, where: str) -> list[dict[str, Any]]:
    """Masks as a recipe writes them; how long the original stayed with each is left out, since all are mixed."""
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise RelgradError(f"{where}: masks are a list of mappings (received {stages!r})")
    return [
        {k: v for k, v in stage.items() if k != "val_loss_stale_count"}
        | ({"bert": True} if stage.get("type") in BERT else {})
        for stage in stages
    ]
