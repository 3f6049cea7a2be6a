"""What one family of masked networks does differently from another: mask, shift, attention, whose code computes it.

A family that comes with code of its own (`trust_remote_code`) often computes what a class of transformers computes too, but for
attention to both sides. Then `library` names the class, and its weights are used without running foreign code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sight:
    """What the positions of some rows may look at.

    valid_BL     bool; False at the padding behind shorter rows
    position_BL  int64
    block        positions per block, where attention is block-causal: a position sees its own block and those before; None: all
    """

    valid_BL: Tensor
    position_BL: Tensor
    block: int | None

    @property
    def everything(self) -> bool:
        """Whether every position sees every other one."""
        return self.block is None and bool(self.valid_BL.all())

    def visible(self) -> Tensor:
        """bool [B, 1, L, L]: whether the position of a row may look at the one of a column. Padding looks at itself at least."""
        seen_BLL = self.valid_BL[:, None, :].expand(-1, self.valid_BL.shape[1], -1)
        if self.block is not None:
            block_BL = self.position_BL // self.block
            seen_BLL = seen_BLL & (block_BL[:, :, None] >= block_BL[:, None, :])
        return (seen_BLL | torch.eye(seen_BLL.shape[1], dtype=torch.bool, device=seen_BLL.device))[:, None]


@dataclass(frozen=True)
class Library:
    """The class of transformers that computes the same from the same weights.

    model      its name
    config     from the configuration of a folder to that of the class; raises RelgradError for what the class does not compute
    renamed    how names of tensors begin in the family's own code and in the class; # is the number of a layer
    tokenizer  the class of its tokenizer, where the folder names one of its own
    """

    model: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    renamed: tuple[tuple[str, str], ...] = ()
    tokenizer: str | None = None


@dataclass(frozen=True)
class Family:
    """One family.

    model_types    the `model_type` of its folders' config.json
    mask_id        the id of its mask, where neither the folder's configuration nor its tokenizer says it
    shifted        whether what comes out at a position speaks for the next one
    block          positions per block of block-causal attention, where the configuration does not say it; None: full attention
    auto           the class of transformers that finds its own code
    inputs         (sight, dtype) -> how its own code is told of attention and positions
    reads_padding  whether its own code looks at what it is told of padding; otherwise rows of each length run by themselves
    library        the class of transformers that computes the same; None: only its own code does
    """

    name: str
    model_types: tuple[str, ...]
    mask_id: int | None = None
    shifted: bool = False
    block: int | None = None
    auto: Literal["AutoModel", "AutoModelForCausalLM"] = "AutoModelForCausalLM"
    inputs: Callable[[Sight, torch.dtype], dict[str, Any]] = lambda sight, dtype: {}
    reads_padding: bool = True
    library: Library | None = None
