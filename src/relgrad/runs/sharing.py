"""A run's result for others: an adapter folded into its model, a folder with a model card, a repository on the hub.

What is written is loaded again and asked about what the policy itself just wrote: the log-probability of every decision must be the
same but for rounding, or the folder is not kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import MergesAdapter, WritesGguf
from relgrad.core.randomness import generator
from relgrad.core.run_folder import RunDir, write_atomic
from relgrad.core.types import Rollouts
from relgrad.evaluation.held_out import as_judged
from relgrad.monitor.model_card import FILE, model_card
from relgrad.monitor.report.read import read_stage as read_files
from relgrad.networks.causal.load import unpack_gguf
from relgrad.runs.build import load_task
from relgrad.runs.use import open_source
from relgrad.stages.kind import build_policy
from relgrad.stages.settings import Stage
from relgrad.training.checkpoint import SUMS
from relgrad.training.parity import FAR, rounding

PROMPTS, COMPLETIONS = 4, 2
"""Of the check: test prompts, and completions of each."""
MERGED = 1e-3
"""Nats by which folding an adapter in may change a float32 log-probability beyond rounding: x W + x A B is not x (W + A B)."""
NOT_SHARED = ("trainer", SUMS, FILE)
"""Of a checkpoint, what only goes on with training, and what is written anew."""

Tell = Callable[[str], None]
"""Is told what is being done now."""


def quietly(what: str) -> None:
    """Tells nobody."""


def merge(source: str, folder: Path, overrides: Sequence[str] = (), tell: Tell = quietly) -> str:
    """Write a run's adapted model as ordinary weights, which need neither relgrad nor peft; says how they were checked.

    Raises RelgradError for a policy without an adapter, a folder that holds something, and a merged model that scores otherwise.
    """
    stage, start = open_source(source, overrides)
    tell("loading the policy")
    policy = build_policy(stage, start)
    if not isinstance(policy, MergesAdapter):
        raise RelgradError(
            f"{source}: a policy of kind {stage.policy.kind} has no adapter to merge; its checkpoint is whole"
        )
    tell("writing a few completions to check by")
    samples = _fresh_samples(policy, stage)
    plain = stage.policy.model_copy(update={"lora": None, "adapter": None, "quantize": None})

    def write(place: Path) -> None:
        tell("folding the adapter into the weights")
        policy.merge(place)
        tell("loading what was written, and scoring the completions by it")

    return _written(
        folder,
        write,
        lambda place: _require_same_scores(stage.model_copy(update={"policy": plain}), place, samples, MERGED),
    )


def write_gguf(source: str, file: Path, overrides: Sequence[str] = (), tell: Tell = quietly) -> str:
    """Write a run's model, its adapter folded in, as one GGUF file; says how it was checked.

    What is read back must be the same number by number, and what transformers makes of the file must score the run's own samples as
    they were drawn. Raises RelgradError for another architecture than Llama's, a file that is there, and as `merge` does.
    """
    if file.exists():
        raise RelgradError(f"{file} is there already; name another file, or delete it")
    stage, start = open_source(source, overrides)
    tell("loading the policy")
    policy = build_policy(stage, start)
    if not isinstance(policy, WritesGguf):
        raise RelgradError(
            f"{source}: a policy of kind {stage.policy.kind} cannot be written as GGUF; autoregressive ones can"
        )
    policy.require_gguf()
    tell("writing a few completions to check by")
    samples = _fresh_samples(policy, stage)
    RunDir(file.parent)
    unfinished = file.with_name(f".{os.getpid()}.tmp.gguf")
    try:
        tell("writing the file, and reading it back")
        compared = policy.write_gguf(unfinished, stage.name)
        tell("loading the file with transformers, and scoring the completions by it")
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            unpack_gguf(unfinished, Path(folder))
            plain = {"model": folder, "tokenizer": None, "lora": None, "adapter": None, "quantize": None}
            read = stage.model_copy(update={"policy": stage.policy.model_copy(update=plain)})
            scored = _require_same_scores(read, Path(folder), samples, MERGED)
        os.rename(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    return f"{compared}; {scored}"


def pack(source: str, folder: Path, overrides: Sequence[str] = (), tell: Tell = quietly) -> str:
    """Write the folder that others get: weights or adapter, tokenizer, recipe and a model card; says how it was checked.

    Raises RelgradError for a recipe that was not run, and as `merge` does.
    """
    stage, start = open_source(source, overrides)
    if start is None:
        raise RelgradError(f"{source}: an untrained recipe has nothing to share; give the folder of a run")
    tell("loading the policy")
    policy = build_policy(stage, start)
    tell("writing a few completions to check by")
    samples = _fresh_samples(policy, stage)
    card = model_card(read_files(start.parents[1]), stage.policy.kind)

    def write(place: Path) -> None:
        shutil.copytree(start, place, ignore=shutil.ignore_patterns(*NOT_SHARED))
        shutil.copy(start.parents[1] / "recipe.yaml", place / "recipe.yaml")
        write_atomic(place / FILE, card)
        tell("loading what was written, and scoring the completions by it")

    return _written(folder, write, lambda place: _require_same_scores(stage, place, samples, 0.0))


def require_name(name: str) -> None:
    """Raise RelgradError for a name that no repository on the hub can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RelgradError(f"push to {name!r}: {error}; write user/name or organisation/name") from None
    if "/" not in name:
        raise RelgradError(f"push to {name!r}: whose? Write user/name or organisation/name")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a packed folder as the hub's repository `name`; its address. Raises RelgradError without a token or a hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        hub.whoami()
        hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=name, commit_message="A policy trained with relgrad")
    except LocalTokenNotFoundError:
        raise RelgradError(
            f"push to {name}: no token of the hub on this machine: `hf auth login`, or set HF_TOKEN. The folder {folder} is "
            "complete"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RelgradError(f"push to {name}: {error}. The folder {folder} is complete: try again later") from None
    return f"https://huggingface.co/{name}"


def _fresh_samples(policy: Any, stage: Stage) -> Rollouts:
    """A few completions of test prompts, with the log-probabilities under which they were drawn."""
    prompts = load_task(stage).test[:PROMPTS]
    if not prompts:
        raise RelgradError(f"{stage.name}: the task has no test prompts, by which what is written could be checked")
    with torch.no_grad(), as_judged(policy):
        rollouts: Rollouts = policy.sample(prompts, COMPLETIONS, generator(stage.seed, "share"))
    return rollouts


def _require_same_scores(stage: Stage, folder: Path, samples: Rollouts, further: float) -> str:
    """Raise RelgradError where the folder's policy scores the samples otherwise than they were drawn; else say how near it is."""
    policy = build_policy(stage, folder)
    cells_N2, worst = samples.cells(), 0.0
    allowed = FAR * rounding(policy) + further
    with torch.no_grad(), as_judged(policy):
        for chunk_N2 in policy.plan(samples, torch.arange(samples.rows), 8192):
            recorded_N = samples.behaviour_logp_BT[chunk_N2[:, 0], chunk_N2[:, 1]]
            gap_N = (policy.score(samples, chunk_N2).logp_N.cpu() - recorded_N).abs()
            worst = max(worst, float(gap_N.max()))
    if not worst <= allowed:
        raise RelgradError(
            f"{folder}: what was written scores the run's own samples otherwise: by up to {worst:.3g} nats, where {allowed:.1g} is "
            "allowed. It is not kept"
        )
    return f"loaded again, {len(cells_N2)} decisions of {samples.rows} samples score as they were drawn, within {worst:.1e} nats"


def _written(folder: Path, write: Callable[[Path], None], check: Callable[[Path], str]) -> str:
    """Write beside the folder, check there, and put it in place; nothing stays of what fails."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RelgradError(f"{folder} holds something already; name another folder, or delete it")
    RunDir(folder.parent)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        verdict = check(unfinished)
        with suppress(FileNotFoundError):
            folder.rmdir()
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return verdict
