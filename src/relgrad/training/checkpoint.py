"""Checkpoints: a plain model or adapter folder that its own library loads, with the loop's state beside it.

    checkpoints/step_000020/            what the policy's `save` writes (safetensors, configuration, tokenizer)
    checkpoints/step_000020/trainer/    state.json, optimizer.safetensors, and the generation batch in use, if any

A folder is written under another name and renamed when it is complete, so a name that exists is whole. Randomness is a
function of the counters in state.json (randomness.py); with the batch saved too, a run that was killed anywhere goes on
bit for bit. Tensors are safetensors, the rest is JSON: nothing read from disk can run code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.run_folder import finite, write_json
from relgrad.training.batch import Batch
from relgrad.training.grpo import Grpo, Loop
from relgrad.training.kept_experience import load_parts, save_parts

BATCH_TENSORS = (
    "keep_B", "group_B", "behaviour_logp_BT", "mask_BT", "advantage_B", "reward_B", "advantage_BT", "reference_logp_BT",
    "correction_BT",
)  # fmt: skip


class Weights(Protocol):
    """A policy or trainable model, as far as checkpoints know it."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def folder_of(root: Path, step: int) -> Path:
    return root / f"step_{step:06d}"


def steps(root: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    found = (p.parent.parent.name for p in root.glob("step_*/trainer/state.json"))
    return sorted(int(name.removeprefix("step_")) for name in found)


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = steps(root)
    return folder_of(root, found[-1]) if found else None


def save(
    root: Path, loop: Loop, weights: Weights, learners: Mapping[str, Weights] | None = None, ranks: Ranks = ALONE
) -> Path:
    """Write the loop's checkpoint atomically. Raises RelgradError when it cannot; older checkpoints stay as they are.

    `learners` are rewards that have weights of their own. Every process calls it, and the first one writes.
    """
    target = folder_of(root, loop.step)
    ranks.together(lambda: _save(root, target, loop, weights, learners or {}, ranks))
    return target


def _save(
    root: Path, target: Path, loop: Loop, weights: Weights, learners: Mapping[str, Weights], ranks: Ranks
) -> None:
    unfinished = root / f".unfinished_{target.name}"
    trainer = unfinished / "trainer"
    try:
        if ranks.first:
            shutil.rmtree(unfinished, ignore_errors=True)
            trainer.mkdir(parents=True)
        _save_experience(loop, trainer, ranks)
        if not ranks.first:
            return
        weights.save(unfinished)
        for name, learner in learners.items():
            learner.save(trainer / "rewards" / name)
        save_file(loop.optimizer.state(), trainer / "optimizer.safetensors")
        write_json(trainer / "state.json", {"counters": loop.counters(), "parameters": _shapes(loop)})
        for path in unfinished.rglob("*"):
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        os.rename(unfinished, target)
        _flush(root)
    except Exception as error:  # safetensors reports a full disk with an exception class of its own
        if ranks.first:
            shutil.rmtree(unfinished, ignore_errors=True)
        saved = steps(root)
        rest = f"the newest complete one is step {saved[-1]}" if saved else "there is no earlier one"
        raise RelgradError(
            f"checkpoint of step {loop.step} could not be written to {target}: {error}. {rest}. Free some space (or change "
            "`out`) and start the same command again"
        ) from error


def _save_experience(loop: Loop, trainer: Path, ranks: Ranks) -> None:
    """The batch in use and what the source keeps, where the loop has them."""
    if not isinstance(loop, Grpo):
        return
    loop.save(trainer / "source")
    if loop.batch is not None:
        save_parts(loop.batch.parts, trainer / "batch", ranks)
        if ranks.first:
            _save_batch(loop.batch, trainer / "batch")


def restore(
    folder: Path,
    loop: Loop,
    weights: Weights,
    learners: Mapping[str, Weights] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Put the loop, its optimizer, batch and weights, and the rewards that learn, where the checkpoint left them.

    Raises RelgradError when the checkpoint belongs to another model, before anything is changed.
    """
    state = json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))
    own = _shapes(loop)
    if state["parameters"] != own:
        differing = sorted(n for n in {*own, *state["parameters"]} if own.get(n) != state["parameters"].get(n))
        name = differing[0]
        raise RelgradError(
            f"{folder}: a checkpoint of another model. {len(differing)} trainable tensors differ, first {name}: saved "
            f"{state['parameters'].get(name, 'absent')}, here {own.get(name, 'absent')}. Use another `name`, or --fresh"
        )
    weights.load(folder)
    for name, learner in (learners or {}).items():
        learner.load(folder / "trainer" / "rewards" / name)
    loop.optimizer.restore(load_file(folder / "trainer" / "optimizer.safetensors"))
    loop.go_on_from(state["counters"])
    if isinstance(loop, Grpo):
        loop.load(folder / "trainer" / "source")
        batch = folder / "trainer" / "batch"
        loop.batch = _load_batch(batch, ranks) if batch.is_dir() else None


def prune(root: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one; also what an interrupted write left behind."""
    for step in steps(root)[:-keep]:
        if step != best:
            shutil.rmtree(folder_of(root, step))
    for leftover in root.glob(".unfinished_*"):
        shutil.rmtree(leftover)


def _shapes(loop: Loop) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in loop.optimizer.parameters.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_batch(batch: Batch, folder: Path) -> None:
    columns = vars(batch)
    tensors: dict[str, Tensor] = {n: columns[n].contiguous() for n in BATCH_TENSORS if columns[n] is not None}
    save_file(tensors, folder / "batch.safetensors")
    plain = {"used": batch.used, "policy_version": batch.policy_version, "metrics": finite(batch.metrics)}
    (folder / "batch.json").write_text(json.dumps(plain))


def _load_batch(folder: Path, ranks: Ranks) -> Batch:
    tensors = load_file(folder / "batch.safetensors")
    plain: dict[str, Any] = json.loads((folder / "batch.json").read_text())
    metrics = {name: torch.nan if value is None else value for name, value in plain.pop("metrics").items()}
    return Batch(parts=load_parts(folder, ranks), metrics=metrics, **plain, **tensors)  # type: ignore[arg-type]


def settled(records: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last `patience` of these evaluations were no better than the best one before them."""
    scores = [r["score"] for r in records if r["score"] is not None]
    return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def best_step(records: Iterable[dict[str, Any]], saved: Sequence[int]) -> int | None:
    """The saved step with the highest held-out score (the earliest of equals), or None where none was evaluated."""
    scored = [(r["score"], -r["step"]) for r in records if r["score"] is not None and r["step"] in saved]
    return -max(scored)[1] if scored else None
