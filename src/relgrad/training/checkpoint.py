"""Checkpoints: a plain model or adapter folder that its own library loads, with the loop's state beside it.

    checkpoints/step_000020/            what the policy's `save` writes (safetensors, configuration, tokenizer)
    checkpoints/step_000020/trainer/    state.json, optimizer.safetensors, and the generation batch in use, if any

A folder is written under another name and renamed when it is complete, so a name that exists is whole. Randomness is a
function of the counters in state.json (randomness.py); with the batch saved too, a run that was killed anywhere goes on
bit for bit. Tensors are safetensors, the rest is JSON: nothing read from disk can run code.
"""

from __future__ import annotations

import dataclasses
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
from relgrad.core.run_folder import finite, write_json
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.training.batch import Batch
from relgrad.training.optimizer import Optimizer

ROLLOUT_TENSORS = ("group_B", "behaviour_logp_BT", "mask_BT", "size_BT")
BATCH_TENSORS = (
    "keep_B", "group_B", "behaviour_logp_BT", "mask_BT", "advantage_B", "reward_B", "advantage_BT", "reference_logp_BT",
    "correction_BT",
)  # fmt: skip


class Loop(Protocol):
    """What is checkpointed of a loop: its counters by name, its optimizer and, in GRPO, the batch in use."""

    COUNTERS: tuple[str, ...]
    step: int
    optimizer: Optimizer


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


def save(root: Path, loop: Loop, weights: Weights, learners: Mapping[str, Weights] | None = None) -> Path:
    """Write the loop's checkpoint atomically. Raises RelgradError when it cannot; older checkpoints stay as they are.

    `learners` are rewards that have weights of their own.
    """
    target = folder_of(root, loop.step)
    unfinished = root / f".unfinished_{target.name}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        trainer = unfinished / "trainer"
        trainer.mkdir(parents=True)
        weights.save(unfinished)
        for name, learner in (learners or {}).items():
            learner.save(trainer / "rewards" / name)
        save_file(loop.optimizer.state(), trainer / "optimizer.safetensors")
        batch: Batch | None = getattr(loop, "batch", None)
        if batch is not None:
            _save_batch(batch, trainer / "batch")
        state = {"counters": {name: getattr(loop, name) for name in loop.COUNTERS}, "parameters": _shapes(loop)}
        write_json(trainer / "state.json", state)
        for path in unfinished.rglob("*"):
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        os.rename(unfinished, target)
        _flush(root)
    except Exception as error:  # safetensors reports a full disk with an exception class of its own
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = steps(root)
        rest = f"the newest complete one is step {kept[-1]}" if kept else "there is no earlier one"
        raise RelgradError(
            f"checkpoint of step {loop.step} could not be written to {target}: {error}. {rest}. Free some space (or change "
            "`out`) and start the same command again"
        ) from error
    return target


def restore(folder: Path, loop: Any, weights: Weights, learners: Mapping[str, Weights] | None = None) -> None:
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
    for name in loop.COUNTERS:
        setattr(loop, name, state["counters"][name])
    if hasattr(weights, "version"):
        weights.version = loop.step
    if hasattr(loop, "batch"):
        batch = folder / "trainer" / "batch"
        loop.batch = _load_batch(batch) if batch.is_dir() else None


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


# ---------------------------------------------------------------------- rollouts and batches


def save_rollouts(rollouts: Rollouts, folder: Path) -> None:
    """Write rollouts to a folder. Prompt columns that JSON cannot hold are written as text."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(rollouts, name) for name in ROLLOUT_TENSORS}
    tensors |= {f"trace.{name}": tensor for name, tensor in rollouts.trace.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "rollouts.safetensors")
    plain = {
        "prompts": [dataclasses.asdict(p) for p in rollouts.prompts],
        "outputs": [dataclasses.asdict(o) for o in rollouts.outputs],
        "stop": rollouts.stop,
        "policy_version": rollouts.policy_version,
        "foreign": rollouts.foreign,
        "stands_for": rollouts.stands_for,
    }
    (folder / "rollouts.json").write_text(json.dumps(plain, default=str, ensure_ascii=False), encoding="utf-8")


def load_rollouts(folder: Path) -> Rollouts:
    """Read what `save_rollouts` wrote."""
    tensors = load_file(folder / "rollouts.safetensors")
    plain = json.loads((folder / "rollouts.json").read_text(encoding="utf-8"))
    return Rollouts(
        prompts=tuple(Prompt(**p) for p in plain["prompts"]),
        outputs=tuple(Output(o["text"], tuple(o["ids"])) for o in plain["outputs"]),
        stop=tuple(plain["stop"]),
        policy_version=plain["policy_version"],
        foreign=plain["foreign"],
        stands_for=plain["stands_for"],
        trace={k.removeprefix("trace."): v for k, v in tensors.items() if k.startswith("trace.")},
        **{name: tensors[name] for name in ROLLOUT_TENSORS},
    )


def _save_batch(batch: Batch, folder: Path) -> None:
    for number, part in enumerate(batch.parts):
        save_rollouts(part, folder / f"part_{number:03d}")
    tensors: dict[str, Tensor] = {
        name: getattr(batch, name).contiguous() for name in BATCH_TENSORS if getattr(batch, name) is not None
    }
    save_file(tensors, folder / "batch.safetensors")
    (folder / "batch.json").write_text(json.dumps({"used": batch.used, "metrics": finite(batch.metrics)}))


def _load_batch(folder: Path) -> Batch:
    tensors = load_file(folder / "batch.safetensors")
    plain = json.loads((folder / "batch.json").read_text())
    parts = [load_rollouts(p) for p in sorted(folder.glob("part_*"))]
    metrics = {k: torch.nan if v is None else v for k, v in plain["metrics"].items()}
    return Batch(parts=parts, used=plain["used"], metrics=metrics, **tensors)  # type: ignore[arg-type]


def settled(records: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last `patience` of these evaluations were no better than the best one before them."""
    scores = [r["score"] for r in records if r["score"] is not None]
    return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def best_step(records: Iterable[dict[str, Any]], saved: Sequence[int]) -> int | None:
    """The saved step with the highest held-out score (the earliest of equals), or None where none was evaluated."""
    scored = [(r["score"], -r["step"]) for r in records if r["score"] is not None and r["step"] in saved]
    return -max(scored)[1] if scored else None
