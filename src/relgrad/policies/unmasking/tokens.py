"""A language model's tokenizer as the symbols of a policy that unmasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Prompt
from relgrad.networks.causal.encode import Encoder


@dataclass(frozen=True)
class TokenizerSymbols:
    """See symbols.Symbols. Prompts and targets are worded as autoregressive models have them (networks/causal/encode.py).

    mask_id  may be an id without a token
    size     how many ids the network has; those beyond the tokenizer are never written
    """

    encoder: Encoder
    mask_id: int
    size: int

    @property
    def end_id(self) -> int:
        """What fills the positions behind an answer, and ends one outside of a chat."""
        return self.encoder.end_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.encoder.end_ids

    @cached_property
    def fingerprint(self) -> str:
        vocabulary = json.dumps(sorted(self.encoder.tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{vocabulary} mask {self.mask_id}".encode()).hexdigest()

    @cached_property
    def drawable_K(self) -> Tensor:
        """Every id with a token but the mask."""
        ids = sorted({int(i) for i in self.encoder.tokenizer.get_vocab().values()} - {self.mask_id})
        return torch.tensor([i for i in ids if i < self.size])

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of plain text, or of a chat as the model's template words it. Raises RelgradError as Encoder does."""
        return self._without_mask(self.encoder.prompt(prompt).tolist(), prompt)

    def example(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and of the answer as the template ends it, without what then fills the positions behind it."""
        prompt_ids, target = (self._without_mask(ids.tolist(), example.prompt) for ids in self.encoder.example(example))
        return prompt_ids, target[:-1] if target[-1] == self.end_id else target

    def ids(self, text: str, what: str) -> list[int]:
        """Ids of plain text."""
        return list(self.encoder.tokenizer(text, padding=False, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; masks are shown as █."""
        parts, run = list[str](), list[int]()
        for token in [*ids, self.mask_id]:
            if token != self.mask_id:
                run.append(token)
                continue
            parts.append(self.encoder.decode([run])[0] if run else "")
            run = []
        return "█".join(parts)

    def save(self, folder: Path) -> None:
        self.encoder.tokenizer.save_pretrained(folder)

    def _without_mask(self, ids: list[int], prompt: Prompt) -> list[int]:
        if self.mask_id in ids:
            raise RelgradError(
                f"prompt {prompt.id} or its target holds the mask of model {self.encoder.settings.model!r} (id {self.mask_id}): a "
                f"masked position cannot be told from it. Leave it out. It begins {prompt.text[:60]!r}"
            )
        return ids
