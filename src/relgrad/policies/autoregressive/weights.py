"""The keeper of a causal language model's weights: what is trained, what it was at the start, how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.weights.reference import FrozenStart


class Weights:
    """Those of `model`, a model of transformers or one that peft has put an adapter on."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapted = hasattr(model, "peft_config")
        self._start = FrozenStart()

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def freeze_reference(self) -> None:
        """Take the trainable weights of this moment as the reference (for a fresh LoRA adapter: the bare model)."""
        self._start.take(self.parameters())

    def reference(self) -> AbstractContextManager[None]:
        """The frozen start in place of the trainable weights, which come back whatever happens inside."""
        return self._start.in_place(self.parameters())

    def save(self, folder: Path) -> None:
        """A PEFT adapter folder or a full model folder."""
        self.model.save_pretrained(folder, safe_serialization=True)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises RelgradError for another model's folder."""
        if not self.adapted:
            causal.load_weights(self.model, folder)
            return
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        expected = {n: t.shape for n, t in get_peft_model_state_dict(self.model).items()}
        set_peft_model_state_dict(self.model, causal.check_adapter(folder, expected))

    def check_adapter_acts(self, folder: Path) -> None:
        """Make sure that the adapter just loaded changes the model's output. Raises RelgradError when it does not."""
        entries = self.model.get_base_model().config.vocab_size
        ids = torch.arange(1, 9, device=next(self.model.parameters()).device)[None] % entries
        with torch.no_grad():
            acting = self.model(input_ids=ids).logits
            with self.model.disable_adapter():
                bare = self.model(input_ids=ids).logits
        if torch.equal(acting, bare):
            raise RelgradError(
                f"{folder}: the adapter was loaded but does not change the output (untrained: every B is 0?)"
            )
