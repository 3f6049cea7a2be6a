"""Load what a policy saved and score it, in a process that has never seen it: `fresh_process.py MODULE FOLDER`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from relgrad.training.kept_experience import load_rollouts


@torch.no_grad()
def main(module: str, folder: Path) -> None:
    """FOLDER/<toy>/{weights,rollouts} for every toy; writes the log-probabilities to FOLDER/scores.safetensors."""
    scores = {}
    for name, build in importlib.import_module(module).toys().items():
        policy = build().policy
        policy.load(folder / name / "weights")
        rollouts = load_rollouts(folder / name / "rollouts")
        scores[name] = policy.score(rollouts, rollouts.cells()).logp_N.cpu()
    save_file(scores, folder / "scores.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
