"""A text that a tiny network learns in seconds, and settings that make the `fill-quick` recipe small enough for it."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = (("red", "big", "old"), ("cat", "dog"), ("sees", "likes"), ("house", "tree"))
LENGTH = 32
NETWORK = {"n_layer": 2, "n_head": 2, "n_embd": 48, "block_size": LENGTH}
HELD_OUT = 64


def write(path: Path, lines: int = 1200) -> Path:
    """Lines of four words, each drawn by itself, after one that has the letters of other words."""
    draw = random.Random(0)
    told = [" ".join(draw.choice(words) for words in WORDS) + ".\n" for _ in range(lines)]
    path.write_text("the end of it\n" + "".join(told), encoding="utf-8")
    return path


def overrides(text: Path) -> list[str]:
    """`fill-quick` on this text: the same four stages in seconds."""
    return [
        f"task.text={text}", f"policy.text={text}", f"task.length={LENGTH}", f"policy.block_size={LENGTH}",
        "policy.n_embd=48", f"task.held_out_size={HELD_OUT}", "task.held_out_fraction=0.2", "sft.batch_size=32",
        "stages.0.sft.steps=120", "stages.0.sft.learning_rate=1e-2", "stages.1.sft.steps=90",
        "stages.1.sft.learning_rate=3e-3", "stages.2.sft.steps=50", "stages.3.grpo.steps=20",
        "stages.3.grpo.learning_rate=3e-4",
    ]  # fmt: skip
