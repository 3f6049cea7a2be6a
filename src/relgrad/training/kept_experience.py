"""Experience in files: safetensors for what is a tensor, JSON for the rest.

Every process calls `save_parts`, and the first one writes what all of them hold. `load_parts` gives a process the traces of its
own parts: with as many processes as before those that it had, with another number they are dealt out anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relgrad.core.ranks import Ranks
from relgrad.core.run_folder import finite
from relgrad.core.types import Experience, Output, Prompt, RewardTable, Rollouts
from relgrad.training.experience import elsewhere

ROLLOUT_TENSORS = ("group_B", "behaviour_logp_BT", "mask_BT", "size_BT")
PART_TENSORS = ("group_B", "age_B", "proposal_logp_BT")
TABLE_TENSORS = ("weights_R", "value_BR", "decision_BRT")


def save_parts(parts: Sequence[Experience], folder: Path, ranks: Ranks) -> None:
    """Write parts of a batch, or of the past, to a folder, each with the rank that holds its trace."""
    own = {number: part for number, part in enumerate(parts) if part.local}
    everybody = ranks.gather(own)
    if not ranks.first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(parts)):
        rank = next(rank for rank, held in enumerate(everybody) if number in held)
        save_part(everybody[rank][number], rank, folder / f"part_{number:03d}")


def load_parts(folder: Path, ranks: Ranks) -> list[Experience]:
    """Read what `save_parts` wrote."""
    parts = []
    for path in sorted(folder.glob("part_*")):
        part, rank = load_part(path)
        parts.append(part if rank % ranks.size == ranks.rank else elsewhere(part, part.rollouts.prompts))
    return parts


def save_part(part: Experience, rank: int, folder: Path) -> None:
    """Write one part, with its trace, to a folder of its own."""
    save_rollouts(part.rollouts, folder)
    tensors = _tensors(part, PART_TENSORS) | {
        f"rewards.{n}": t for n, t in _tensors(part.rewards, TABLE_TENSORS).items()
    }
    save_file(tensors, folder / "experience.safetensors")
    table = part.rewards
    plain = {
        "source": part.source, "rank": rank, "shaping": part.shaping,
        "rewards": {"names": table.names, "parts": [dict(p) for p in table.parts], "why": table.why},
    }  # fmt: skip
    (folder / "experience.json").write_text(json.dumps(finite(plain), ensure_ascii=False), encoding="utf-8")


def load_part(folder: Path) -> tuple[Experience, int]:
    """(the part, the rank that held its trace)."""
    tensors = load_file(folder / "experience.safetensors")
    plain = json.loads((folder / "experience.json").read_text(encoding="utf-8"))
    own = {name: tensors.get(name) for name in PART_TENSORS}
    table = {name: tensors.get(f"rewards.{name}") for name in TABLE_TENSORS}
    words = plain["rewards"]
    parts = tuple({k: torch.nan if v is None else v for k, v in p.items()} for p in words["parts"])
    rewards = RewardTable(names=tuple(words["names"]), parts=parts, why=tuple(words["why"]), **table)  # type: ignore[arg-type]
    sent = {"source": plain["source"], "shaping": plain.get("shaping")}
    part = Experience(rollouts=load_rollouts(folder), rewards=rewards, **sent, **own)  # type: ignore[arg-type]
    return part, plain["rank"]


def _tensors(value: Any, names: Sequence[str]) -> dict[str, Tensor]:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: fields[name].contiguous() for name in names if fields[name] is not None}


def save_rollouts(rollouts: Rollouts, folder: Path) -> None:
    """Write rollouts to a folder. Prompt columns that JSON cannot hold are written as text."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(rollouts, ROLLOUT_TENSORS)
    tensors |= {f"trace.{name}": tensor.contiguous() for name, tensor in rollouts.trace.items()}
    save_file(tensors, folder / "rollouts.safetensors")
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
