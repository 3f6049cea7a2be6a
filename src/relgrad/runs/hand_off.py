"""The hand-off of a policy from one stage to the next: `hand_off.json` of a stage says what it ended with, the next one checks it.

    {"step": 60, "weights": {"layout": …, "sha256": …}, "policy": {…}, "probe": {"prompts": […], "nll": 12.25, "targets": 17}}

An adapter that was loaded under other names, or not at all, changes nothing that anybody sees: the stage starts from fresh weights
and learns. So before its first step a stage compares its trainable weights with those that the stage before ended with, and the
log-likelihood (nats, temperature 1) that both give to a few texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import KnowsTargets, Policy
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Example, Prompt
from relgrad.evaluation.held_out import as_judged
from relgrad.stages.settings import Stage
from relgrad.tasks import Task
from relgrad.training import checkpoint

FILE = "hand_off.json"
PROMPTS, CHARACTERS = 2, 40
"""Of the probe: its prompts, and how much of each is also its target."""
EXACT, OTHERWISE = 1e-4, 0.1
"""Nats per target that two likelihoods may differ by: of policies of the same settings, and of others (another precision, say)."""


def write(folder: RunDir, stage: Stage, task: Task, policy: Policy, step: int) -> None:
    """Keep what the stage ended with: where the policy keeps an average of its weights that is judged, this is handed on."""
    with as_judged(policy):
        folder.write_json(FILE, _state(stage, task, policy, step))


def _state(stage: Stage, task: Task, policy: Policy, step: int) -> dict[str, Any]:
    prompts = [_plain(prompt) for prompt in (task.test[:PROMPTS] or task.train[:PROMPTS])]
    return {
        "step": step,
        "weights": weights(policy),
        "policy": stage.policy.model_dump(mode="json"),
        "probe": {"prompts": prompts, **_likelihood(policy, prompts)},
    }


def check(start: Path, stage: Stage, policy: Policy) -> None:
    """Raise RelgradError where `policy`, built from the checkpoint `start`, is not what the stage of that checkpoint ended with.

    Says nothing of a checkpoint before the stage's end, nor of a stage that kept no hand-off.
    """
    file = start.parents[1] / FILE
    if not file.is_file():
        return
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        before, probe = record["weights"], record["probe"]
        if record["step"] != checkpoint.step_of(start):
            return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RelgradError(
            f"{file} cannot be read ({type(error).__name__}: {error}); bring it back from a copy"
        ) from None
    with as_judged(policy):
        now, after = weights(policy), _likelihood(policy, probe["prompts"])
    if now["layout"] == before["layout"] and now["sha256"] != before["sha256"]:
        raise RelgradError(
            f"{start}: the weights that were loaded are not those that the stage ended with (SHA-256 {now['sha256'][:12]}…, and "
            f"{before['sha256'][:12]}… in {file}). {_ADVICE}"
        )
    if probe["nll"] is None or after["nll"] is None:
        return
    same = record["policy"] == json.loads(json.dumps(stage.policy.model_dump(mode="json")))
    gap = abs(after["nll"] / after["targets"] - probe["nll"] / probe["targets"])
    if not gap <= (EXACT if same else OTHERWISE):
        raise RelgradError(
            f"{start}: the policy that was loaded differs from the one that the stage ended with: by {gap:.4g} nats a token on the "
            f"texts of {file}, where {EXACT if same else OTHERWISE:g} is allowed. {_ADVICE}"
        )


_ADVICE = "It was loaded otherwise than it was saved: compare the policy sections of the two stages, or start over with --from"


def weights(policy: Policy) -> dict[str, str]:
    """The hash of the trainable weights, and that of their names, shapes and dtypes: only weights of one layout can be equal."""
    layout, content = hashlib.sha256(), hashlib.sha256()
    for name, parameter in policy.parameters():
        layout.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        content.update(parameter.detach().flatten().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return {"layout": layout.hexdigest(), "sha256": content.hexdigest()}


def _likelihood(policy: Policy, prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """-log p of the beginnings of the prompts after themselves; null, with a reason, for a policy that cannot tell."""
    if not isinstance(policy, KnowsTargets):
        return {"nll": None, "targets": 0, "why": "the policy has no likelihood of given texts"}
    examples = []
    for one in prompts:
        prompt = Prompt(one["content"], one["columns"], one["id"])
        examples.append(Example(prompt, prompt.text[:CHARACTERS]))
    try:
        nll, targets = policy.target_nll(examples)
    except RelgradError as error:
        return {"nll": None, "targets": 0, "why": str(error)}
    if not targets or not math.isfinite(nll):
        return {"nll": None, "targets": targets, "why": "no finite likelihood"}
    return {"nll": nll, "targets": targets, "why": ""}


def _plain(prompt: Prompt) -> dict[str, Any]:
    """A prompt as JSON has it; columns that JSON does not have are left out."""
    columns = {name: value for name, value in prompt.columns.items() if _is_plain(value)}
    content = prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
    return {"content": content, "columns": columns, "id": prompt.id}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
