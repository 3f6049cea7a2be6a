"""Prompts and targets as token ids, completions as text.

A prompt ends where its text ends: what a tokenizer puts after every text (an end of sequence) is left out. A chat is worded by the
model's template; one that ends in an assistant's message is continued there. A target ends as the template ends an assistant's
turn, or, where there is no chat, with the end of sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.types import SYSTEM_ROLES, Example, Message, Prompt
from relgrad.core.whole_text import half_character

MARK = "MARK-OF-THE-CONTENT"
"""Stands for an assistant's message when the template is asked what it writes after one."""


class Wording(Protocol):
    """Settings of a policy that say how its texts are worded (policies/autoregressive/settings.py explains them)."""

    @property
    def model(self) -> str: ...

    @property
    def max_completion_length(self) -> int: ...

    @property
    def chat(self) -> bool: ...

    @property
    def system_prompt(self) -> str | None: ...

    @property
    def skip_special_tokens(self) -> bool: ...


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, used as a recipe says.

    context  the most tokens a row may have, or None where the model sets no limit
    entries  how many tokens the model has embeddings for
    end_ids  every id that ends a completion
    end_id   the one of them that closes a target where no chat template does
    template_arguments  what the chat template gets beside the chat
    """

    tokenizer: Any
    settings: Wording
    context: int | None
    entries: int
    end_ids: tuple[int, ...]
    end_id: int
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, prompt: Prompt) -> Tensor:
        """Token ids [P] of a prompt.

        Raises RelgradError where it leaves no room for a completion in the context, and for a chat that the template refuses.
        """
        ids = self._prompt_ids(prompt)
        self._check_room(prompt, len(ids), self.settings.max_completion_length)
        return torch.tensor(ids, dtype=torch.int64)

    def example(self, example: Example) -> tuple[Tensor, Tensor]:
        """Token ids of an example's prompt [P] and of its target [T], with its end.

        A target may be longer than what is sampled, but not than the context. Raises RelgradError as `prompt` does.
        """
        prompt_ids = self._prompt_ids(example.prompt)
        if wrong := half_character(example.target):
            raise RelgradError(f"prompt {example.prompt.id}: its target has {wrong}; it begins {example.target[:60]!a}")
        ids = list(self.tokenizer(example.target, padding=False, add_special_tokens=False).input_ids)
        if not ids or ids[-1] not in self.end_ids:
            ids += self._ending(example.prompt)
        self._check_known(example.prompt, ids)
        length, target = len(prompt_ids), len(ids)
        if self.context is not None and length + target > self.context:
            raise RelgradError(
                f"prompt {example.prompt.id} has {length} tokens and its target {target}, the end of sequence included: more than "
                f"the model's context of {self.context}. Shorten the target, or leave the example out. The target begins "
                f"{example.target[:60]!r}"
            )
        return torch.tensor(prompt_ids, dtype=torch.int64), torch.tensor(ids, dtype=torch.int64)

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """The texts of completions, as they were written: special tokens are part of them, unless the settings skip them."""
        texts: list[str] = self.tokenizer.batch_decode(
            completions,
            skip_special_tokens=self.settings.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return texts

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        chat = self._chat(prompt)
        if wrong := half_character(chat or prompt.content):
            raise RelgradError(f"prompt {prompt.id} has {wrong}; it begins {prompt.text[:60]!a}")
        ids = self._text_ids(prompt) if chat is None else self._chat_ids(prompt, chat)
        if not ids:
            raise RelgradError(f"prompt {prompt.id} has no tokens: {prompt.text[:60]!r}")
        self._check_known(prompt, ids)
        return ids

    def _chat(self, prompt: Prompt) -> list[Message] | None:
        """The prompt's messages, with one system message at most: its own before the recipe's. None for a prompt of plain text."""
        content, system = prompt.content, self.settings.system_prompt
        if isinstance(content, str):
            if not self.settings.chat and system is None:
                return None
            content = [{"role": "user", "content": content}]
        if system is None or any(message["role"] in SYSTEM_ROLES for message in content):
            return list(content)
        return [{"role": "system", "content": system}, *content]

    def _text_ids(self, prompt: Prompt) -> list[int]:
        """Ids of plain text with what the tokenizer puts before a text, once, and without what it puts after one."""
        own = list(self.tokenizer(prompt.content, padding=False, add_special_tokens=False).input_ids)
        with_special = list(self.tokenizer(prompt.content, padding=False).input_ids)
        if not own:  # an empty text is what stands before every text
            return [i for i in with_special if i != self.tokenizer.eos_token_id or i == self.tokenizer.bos_token_id]
        for first in range(len(with_special) - len(own) + 1):
            if with_special[first : first + len(own)] == own:
                before = with_special[:first]
                return own if before and own[:first] == before else before + own
        raise RelgradError(
            f"prompt {prompt.id}: the tokenizer of {self.settings.model!r} puts special tokens inside of the text, so it cannot be "
            f"told where the prompt ends. Name another tokenizer with policy.tokenizer. It begins {prompt.text[:60]!r}"
        )

    def _chat_ids(self, prompt: Prompt, chat: Sequence[Message]) -> list[int]:
        """Ids of a chat whose next turn is the assistant's, or whose last message is the assistant's, to go on with."""
        prefilled = chat[-1]["role"] == "assistant"
        if prefilled and not chat[-1]["content"]:
            chat, prefilled = chat[:-1], False
        options = {"continue_final_message": True} if prefilled else {"add_generation_prompt": True}
        return list(self._ids(self._worded(prompt, chat, **options)))

    def _ending(self, prompt: Prompt) -> list[int]:
        """What the template writes after an assistant's message, up to the id that ends a completion; otherwise `end_id`."""
        chat = self._chat(prompt)
        if chat is None:
            return [self.end_id]
        if chat[-1]["role"] == "assistant":
            chat = chat[:-1]
        _, mark, rest = self._worded(prompt, [*chat, {"role": "assistant", "content": MARK}]).rpartition(MARK)
        if not mark:
            raise RelgradError(
                f"prompt {prompt.id}: the chat template of model {self.settings.model!r} leaves out what the assistant says, so "
                "there is nothing to learn from a target"
            )
        ending = self._ids(rest)
        last = next((number for number, token in enumerate(ending) if token in self.end_ids), None)
        return [self.end_id] if last is None else ending[: last + 1]

    def _worded(self, prompt: Prompt, chat: Sequence[Message], **options: bool) -> str:
        """A chat as the model's template words it. Raises RelgradError where there is no template, or it refuses the chat."""
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise RelgradError(
                f"prompt {prompt.id} is a chat, but model {self.settings.model!r} has no chat template: give plain text, "
                "and leave policy.chat, policy.system_prompt and the task's chat and system out"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(list(chat), tokenize=False, **self.template_arguments, **options)
            )
        except (TemplateError, ValueError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RelgradError(
                f"prompt {prompt.id}: the chat template of model {self.settings.model!r} refuses it ({reason}). Its roles are "
                f"{', '.join(message['role'] for message in chat)}: give the roles that the template knows, in the order it "
                f"wants, or another template. It begins {prompt.text[:60]!r}"
            ) from None

    def _ids(self, worded: str) -> list[int]:
        """Ids of a text in which the template has written all special tokens itself."""
        return list(self.tokenizer(worded, padding=False, add_special_tokens=False).input_ids)

    def _check_known(self, prompt: Prompt, ids: list[int]) -> None:
        """Raise RelgradError for a token without an embedding: one that was added to the tokenizer and not to the model."""
        unknown = sorted({i for i in ids if i >= self.entries})
        if unknown:
            named = ", ".join(f"{self.tokenizer.convert_ids_to_tokens(i)!r} (id {i})" for i in unknown[:5])
            raise RelgradError(
                f"prompt {prompt.id} or its target holds a token that model {self.settings.model!r} has no embedding for: {named}. "
                f"It has {self.entries}. Enlarge the model (model.resize_token_embeddings), take the tokenizer it was trained "
                "with, or leave the token out of the texts"
            )

    def _check_room(self, prompt: Prompt, length: int, completion: int) -> None:
        if self.context is not None and length + completion > self.context:
            raise RelgradError(
                f"prompt {prompt.id} has {length} tokens; with {completion} for the completion that is more than the "
                f"model's context of {self.context}. Shorten the prompt or lower policy.max_completion_length. "
                f"It begins {prompt.text[:60]!r}"
            )
