"""Checkpoints: a plain model or adapter folder that its own library loads, with the loop's state beside it.

    checkpoints/step_000020/            what the policy's `save` writes (safetensors, configuration, tokenizer)
    checkpoints/step_000020/trainer/    state.json, optimizer.safetensors, the generation batch in use, if any, and checksums.json
    checkpoints/step_000020/trainer/last/   the weights of the last step, where the folder holds others as the stage's result

A folder is written under another name and renamed when it is complete. The checksums of its files are written last; by them a
file that was damaged since is noticed before it is used. Randomness is a function of the counters in state.json (randomness.py);
with the batch saved too, a run that was killed anywhere goes on bit for bit. Tensors are safetensors, the rest is JSON: nothing
read from disk can run code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from relgrad.core import checksums
from relgrad.core.errors import RelgradError
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.run_folder import finite, write_json
from relgrad.training.batch import Batch
from relgrad.training.grpo import Grpo, Loop
from relgrad.training.kept_experience import load_parts, save_parts

STATE, SUMS, LAST = Path("trainer", "state.json"), Path("trainer", "checksums.json"), Path("trainer", "last")
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


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(folder.name.removeprefix("step_"))


def steps(root: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    complete = (path.parent.parent for path in root.glob("step_*/trainer/state.json"))
    return sorted(step_of(folder) for folder in complete if re.fullmatch(r"step_\d+", folder.name))


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    saved = steps(root)
    return folder_of(root, saved[-1]) if saved else None


def latest_to_use(root: Path) -> Path | None:
    """The newest complete checkpoint, or None. Raises RelgradError where what is used of it, all but `trainer`, is damaged."""
    newest = latest(root)
    if newest is not None:
        require_undamaged(newest, trainer=False)
    return newest


def damage(folder: Path, *, trainer: bool = True) -> str | None:
    """What is wrong with a checkpoint; None where nothing is, or where it was saved without checksums."""
    if not (folder / SUMS).exists():
        return None
    try:
        sums = checksums.read(folder / SUMS)
    except RelgradError as error:
        return str(error)
    return checksums.damage(folder, {n: s for n, s in sums.items() if trainer or not n.startswith("trainer/")})


def require_undamaged(folder: Path, *, trainer: bool = True) -> None:
    """Raise RelgradError where a file of a checkpoint is damaged, naming the newest other one that is whole.

    Without `trainer` what only goes on with training is not looked at.
    """
    problem = damage(folder, trainer=trainer)
    if problem is None:
        return
    root = folder.parent
    others = (folder_of(root, step) for step in reversed(steps(root)) if step != step_of(folder))
    whole = next((checkpoint for checkpoint in others if damage(checkpoint) is None), None)
    if whole is None:
        advice = "No other one is whole: bring the file back from a copy, or start over with --fresh"
    else:
        advice = (
            f"Step {step_of(whole)} is whole: bring the file back from a copy, or move {folder} to another place and start the "
            f"same command again, which then goes on with {whole}"
        )
    raise RelgradError(f"the checkpoint of step {step_of(folder)} is damaged: {problem}. {advice}")


def ended(folder: Path) -> bool | None:
    """Whether the stage ended with a checkpoint; None where it does not say. Raises RelgradError where it cannot be read."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return None if "ended" not in state else bool(state["ended"])
    except (OSError, ValueError, TypeError) as error:
        require_undamaged(folder)
        raise RelgradError(f"{folder / STATE} cannot be read: {error}") from error


def seal(folder: Path) -> None:
    """Write the checksums of a checkpoint as it is now."""
    checksums.seal(folder, folder / SUMS)


def save(
    root: Path,
    loop: Loop,
    weights: Weights,
    learners: Mapping[str, Weights] | None = None,
    ranks: Ranks = ALONE,
    last: Path | None = None,
    ended: bool = False,
) -> Path:
    """Write the loop's checkpoint atomically. Raises RelgradError when it cannot; older checkpoints stay as they are.

    `learners` are rewards that have weights of their own. `last`, from `set_aside`, are the weights of the loop's step, where
    `weights` are those of a better one: whoever goes on, goes on with them. `ended`: the stage ended with it. Every process calls
    it, and the first one writes.
    """
    target = folder_of(root, loop.step)

    def write() -> None:
        unfinished = root / f".unfinished_{target.name}"
        try:
            _write(unfinished, loop, weights, learners or {}, ranks)
            if ranks.first:
                if last is not None:
                    os.rename(last, unfinished / LAST)
                state = {"counters": loop.counters(), "parameters": _shapes(loop), "ended": ended}
                write_json(unfinished / STATE, state)
                seal(unfinished)
                _publish(unfinished, target)
        except Exception as error:  # safetensors reports a full disk with an exception class of its own
            if ranks.first:
                shutil.rmtree(unfinished, ignore_errors=True)
            saved = steps(root)
            rest = f"the newest complete one is step {saved[-1]}" if saved else "there is no earlier one"
            raise RelgradError(
                f"checkpoint of step {loop.step} could not be written to {target}: {error}. {rest}. Free some space (or change "
                "`out`) and start the same command again"
            ) from error

    ranks.together(write)
    return target


def set_aside(root: Path, weights: Weights, ranks: Ranks = ALONE) -> Path:
    """Write the weights that are in place to a folder that `save` then takes as its `last`; the folder."""
    folder = root / ".unfinished_last"

    def write() -> None:
        if ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            weights.save(folder)

    ranks.together(write)
    return folder


def _write(folder: Path, loop: Loop, weights: Weights, learners: Mapping[str, Weights], ranks: Ranks) -> None:
    """Fill a new folder with the tensors of a checkpoint."""
    trainer = folder / "trainer"
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)
        trainer.mkdir(parents=True)
    _save_experience(loop, trainer, ranks)
    if not ranks.first:
        return
    weights.save(folder)
    for name, learner in learners.items():
        learner.save(trainer / "rewards" / name)
    save_file(loop.optimizer.state(), trainer / "optimizer.safetensors")


def _publish(folder: Path, target: Path) -> None:
    """Give a finished folder its name, once all of it is on the disk."""
    for path in folder.rglob("*"):
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.rename(folder, target)
    _flush(target.parent)


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

    Raises RelgradError when the checkpoint is damaged or belongs to another model, before anything is changed.
    """
    require_undamaged(folder)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        _require_same_model(folder, state["parameters"], _shapes(loop))
        weights.load(folder / LAST if (folder / LAST).is_dir() else folder)
        for name, learner in (learners or {}).items():
            learner.load(folder / "trainer" / "rewards" / name)
        loop.optimizer.restore(load_file(folder / "trainer" / "optimizer.safetensors"))
        loop.go_on_from(state["counters"])
        if isinstance(loop, Grpo):
            loop.load(folder / "trainer" / "source")
            batch = folder / "trainer" / "batch"
            loop.batch = _load_batch(batch, ranks) if batch.is_dir() else None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if (folder / SUMS).exists():
            raise  # the files are as they were saved
        raise RelgradError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def _require_same_model(folder: Path, saved: Mapping[str, list[int]], own: Mapping[str, list[int]]) -> None:
    """Raise RelgradError where the shapes of the saved tensors are not those of the loop's."""
    if saved != own:
        differing = sorted(n for n in {*own, *saved} if own.get(n) != saved.get(n))
        name = differing[0]
        raise RelgradError(
            f"{folder}: a checkpoint of another model. {len(differing)} trainable tensors differ, first {name}: saved "
            f"{saved.get(name, 'absent')}, here {own.get(name, 'absent')}. Use another `name`, or --fresh"
        )


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
    """The saved step with the highest held-out score, of equals the last one; None where none was evaluated."""
    scored = [(r["score"], r["step"]) for r in records if r["score"] is not None and r["step"] in saved]
    return max(scored)[1] if scored else None
