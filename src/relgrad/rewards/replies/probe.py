"""What a text is about to do, read off its vector: an ordinary reply, promotion, machine talk, abuse, or words in no order.

A softmax regression on MiniLM vectors; its 1,925 numbers are in probe.safetensors, made by `python -m benchmarks.replies_probe`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

CLASSES = ("ordinary", "promotion", "machine", "abuse", "shuffled")
FILE = Path(__file__).parent / "probe.safetensors"


@cache
def _weights() -> dict[str, Tensor]:
    return load_file(FILE)


def probabilities(vector_ND: Tensor) -> Tensor:
    """[N, classes]: how likely each class is, in the order of `CLASSES`."""
    weights = _weights()
    return (vector_ND @ weights["weight_CD"].T + weights["bias_C"]).softmax(-1)
