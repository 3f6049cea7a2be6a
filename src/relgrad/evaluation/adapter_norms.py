"""How large a LoRA adapter is, layer by layer: the Frobenius norm of what it adds to the weights, (alpha / r) B A.

Known to be wrong about it as a measure of learning: the same function has many factorisations and scales, and a small update in
one layer can matter more than a large one in another. Norms compare trainings of one recipe with each other.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from relgrad.core.errors import RelgradError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_norms(folder: Path) -> dict[str, float]:
    """{layer: norm} of the adapter in a folder, in the order of its file; empty where there is none. Raises RelgradError.

    ||B A||_F is computed from the two small products B^T B and A A^T: no matrix of the size of the weights is made.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        return {}
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        scale = config["lora_alpha"] / config["r"]
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RelgradError(f"{folder}: no LoRA adapter that can be read ({type(error).__name__}: {error})") from None
    norms = {}
    for name, a_RI in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        b_OR = tensors[name.replace("lora_A", "lora_B")].double()
        gram = (b_OR.T @ b_OR) * (a_RI.double() @ a_RI.double().T)
        layer = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        norms[layer] = scale * float(torch.clamp(gram.sum(), min=0).sqrt())
    return norms
