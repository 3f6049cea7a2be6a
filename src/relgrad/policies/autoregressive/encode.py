"""Prompts and targets as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Prompt
from relgrad.policies.autoregressive.settings import Settings


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, used as a recipe says.

    context  the most tokens a row may have, or None where the model sets no limit
    end_id   the end-of-sequence id that closes a target
    """

    tokenizer: Any
    settings: Settings
    context: int | None
    end_id: int

    def prompt(self, prompt: Prompt) -> Tensor:
        """Token ids [P] of a prompt. Raises RelgradError when it leaves no room for a completion in the context."""
        content = prompt.content
        if isinstance(content, str) and self.settings.chat:
            content = [{"role": "user", "content": content}]
        if isinstance(content, str):
            ids = self.tokenizer(content, padding=False).input_ids
        else:
            if self.settings.system_prompt is not None:
                content = [{"role": "system", "content": self.settings.system_prompt}, *content]
            if not self.tokenizer.chat_template:
                raise RelgradError(
                    f"prompt {prompt.id} is a chat, but model {self.settings.model!r} has no chat template: give plain text"
                )
            text = self.tokenizer.apply_chat_template(list(content), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, padding=False, add_special_tokens=False).input_ids
        if not ids:
            raise RelgradError(f"prompt {prompt.id} has no tokens: {prompt.text[:60]!r}")
        self._check_room(prompt, len(ids), self.settings.max_completion_length)
        return torch.tensor(ids, dtype=torch.int64)

    def example(self, example: Example) -> tuple[Tensor, Tensor]:
        """Token ids of an example's prompt [P] and of its target [T], the end of sequence included. Raises RelgradError."""
        prompt_P = self.prompt(example.prompt)
        ids = self.tokenizer(example.target, padding=False, add_special_tokens=False).input_ids
        self._check_room(example.prompt, len(prompt_P), len(ids) + 1)
        return prompt_P, torch.tensor([*ids, self.end_id])

    def _check_room(self, prompt: Prompt, length: int, completion: int) -> None:
        if self.context is not None and length + completion > self.context:
            raise RelgradError(
                f"prompt {prompt.id} has {length} tokens; with {completion} for the completion that is more than the "
                f"model's context of {self.context}. Shorten the prompt or lower policy.max_completion_length. "
                f"It begins {prompt.text[:60]!r}"
            )
