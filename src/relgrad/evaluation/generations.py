r"""What policies wrote, kept in a file: metrics are computed from it again without the policies.

A JSON line each, first the head, then one for every training and prompt:

    {"format": "relgrad generations 1", "facts": {…}, "suite": {…}, "rewards": {"names": […], "weights": […]},
     "contenders": [{"label": "runs/x", "trainings": [{"source": "runs/x", "seed": 0}]}]}
    {"source": "runs/x", "seed": 0, "prompt": {"id": 7, "content": "…", "columns": {…}, "family": ""},
     "base": {"nll": 41.2, "tokens": 12},
     "samples": [{"text": "…", "ids": [5, 2], "stop": "eos", "tokens": 3, "rewards": [0.5, null]}]}

A reward that is null is unscored. `base` is -log p (nats) of all samples of the prompt under the base model; null where it was
not asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import finite, read_lines, write_atomic
from relgrad.core.types import Output, Prompt, RewardTable, Rollouts

FORMAT = "relgrad generations 1"
Batch = tuple[Rollouts, RewardTable]


@dataclass(frozen=True)
class Written:
    """What one training wrote, prompt by prompt: the records of the file, without `source` and `seed`."""

    source: str
    seed: int
    records: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Generations:
    """A file of generations: contenders in order, each its label and its trainings.

    facts  what was asked and by what it was judged, for tables and pages
    suite  the settings of the evaluation suite; None where it was not asked for
    """

    facts: Mapping[str, Any]
    suite: Mapping[str, Any] | None
    names: tuple[str, ...]
    weights: tuple[float, ...]
    contenders: tuple[tuple[str, tuple[Written, ...]], ...]

    @property
    def fewest(self) -> int:
        """The fewest completions of any prompt."""
        return min(
            len(record["samples"]) for _, trainings in self.contenders for one in trainings for record in one.records
        )


def records_of(batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """One record a prompt, in order, of what was drawn and rewarded."""
    records = []
    for rollouts, table in batches:
        tokens_B = (rollouts.size_BT * rollouts.mask_BT).sum(-1).tolist()
        for group, prompt in enumerate(rollouts.prompts):
            rows = (rollouts.group_B == group).nonzero()[:, 0].tolist()
            samples = [
                {
                    "text": rollouts.outputs[row].text,
                    "ids": list(rollouts.outputs[row].ids),
                    "stop": rollouts.stop[row],
                    "tokens": tokens_B[row],
                    "rewards": table.value_BR[row].tolist(),
                }
                for row in rows
            ]
            records.append({"prompt": plain_prompt(prompt), "base": None, "samples": samples})
    return records


def plain_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt as JSON has it; columns that JSON does not have are left out."""
    content = prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
    columns = {name: value for name, value in prompt.columns.items() if _is_plain(value)}
    return {"id": prompt.id, "content": content, "columns": columns, "family": prompt.family}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def prompt_of(record: Mapping[str, Any]) -> Prompt:
    """The prompt of a record."""
    prompt = record["prompt"]
    return Prompt(prompt["content"], prompt["columns"], prompt["id"], prompt["family"])


def batch_of(records: Sequence[Mapping[str, Any]], names: Sequence[str], weights: Sequence[float]) -> Batch:
    """Rollouts and rewards from records: all that figures are made of. What scored a decision is not in them."""
    samples = [sample for record in records for sample in record["samples"]]
    group_B = torch.tensor([group for group, record in enumerate(records) for _ in record["samples"]])
    rollouts = Rollouts(
        prompts=tuple(prompt_of(record) for record in records),
        group_B=group_B,
        behaviour_logp_BT=torch.zeros(len(samples), 1),
        mask_BT=torch.ones(len(samples), 1, dtype=torch.bool),
        size_BT=torch.tensor([[sample["tokens"]] for sample in samples], dtype=torch.int64),
        outputs=tuple(Output(sample["text"], tuple(sample["ids"])) for sample in samples),
        stop=tuple(sample["stop"] for sample in samples),
        policy_version=0,
        trace={},
    )
    values = [[math.nan if value is None else value for value in sample["rewards"]] for sample in samples]
    weights_R = torch.tensor(weights, dtype=torch.float64)
    return rollouts, RewardTable(tuple(names), weights_R, torch.tensor(values, dtype=torch.float64))


def write(generations: Generations, path: Path) -> None:
    """Write the file whole."""
    head: dict[str, Any] = {
        "format": FORMAT,
        "facts": generations.facts,
        "suite": generations.suite,
        "rewards": {"names": generations.names, "weights": generations.weights},
        "contenders": [
            {"label": label, "trainings": [{"source": one.source, "seed": one.seed} for one in trainings]}
            for label, trainings in generations.contenders
        ],
    }
    lines: list[dict[str, Any]] = [head]
    for _, trainings in generations.contenders:
        for one in trainings:
            lines += [{"source": one.source, "seed": one.seed, **record} for record in one.records]
    write_atomic(path, "".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))


def read(path: Path) -> Generations:
    """What `write` wrote. Raises RelgradError for any other file, naming the line that is wrong."""
    if not path.is_file():
        raise RelgradError(f"no file of generations {str(path)!r} (working directory {Path.cwd()})")
    lines = read_lines(path)
    head = next(lines, None)
    if head is None or head.get("format") != FORMAT:
        raise RelgradError(
            f"{path}: no file of generations ({FORMAT!r} belongs in its first line); `relgrad compare A B --generations {path}` "
            "writes one"
        )
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for number, record in enumerate(lines, 2):
        if problem := _problem(record, len(head["rewards"]["names"])):
            raise RelgradError(f"{path}, line {number}: {problem}")
        rows.setdefault(record["source"], []).append({key: record[key] for key in ("prompt", "base", "samples")})
    return Generations(
        facts=head["facts"],
        suite=head["suite"],
        names=tuple(head["rewards"]["names"]),
        weights=tuple(head["rewards"]["weights"]),
        contenders=tuple((one["label"], tuple(_trainings(path, one["trainings"], rows))) for one in head["contenders"]),
    )


def _trainings(
    path: Path, trainings: Sequence[Mapping[str, Any]], rows: Mapping[str, list[Mapping[str, Any]]]
) -> Iterator[Written]:
    for one in trainings:
        if one["source"] not in rows:
            raise RelgradError(f"{path}: nothing that {one['source']} wrote is in it; the file is not whole")
        yield Written(one["source"], one["seed"], tuple(rows[one["source"]]))


def _problem(record: Mapping[str, Any], rewards: int) -> str:
    """What is wrong with a line; "" where nothing is."""
    for key in ("source", "prompt", "samples"):
        if key not in record:
            return f"{key!r} is missing"
    if not record["samples"]:
        return "a prompt without samples"
    for sample in record["samples"]:
        if missing := {"text", "ids", "stop", "tokens", "rewards"} - set(sample):
            return f"a sample without {', '.join(sorted(missing))}"
        if len(sample["rewards"]) != rewards:
            return f"a sample with {len(sample['rewards'])} rewards, and there are {rewards}"
    return ""
