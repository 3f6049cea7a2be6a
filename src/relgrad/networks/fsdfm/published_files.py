"""Apple's FS-DFM checkpoint files, read into `DiT` by name and never written.

    DFM, the many-step teacher       {model, optimizer, step, train_sampler, test_sampler}
    FS-DFM, the few-step student     {student_model, student_ema_model, [teacher_model], [student_optimizer], step, ...}

Sizes are those of the tensors; the number of heads is in the buffer `rotary_emb.inv_freq`, which is compared and dropped. Names
may carry those of wrappers (`module.`, `_orig_mod.`: distributed or compiled training). Only what is asked for is read from the
disk: the teacher's file is 16 GB, three quarters of which are the optimizer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.fsdfm.network import DiT, DiTConfig, inverse_frequencies
from relgrad.networks.weights import files
from relgrad.networks.weights.folder import newest
from relgrad.networks.weights.safe_pickle import load_tensors

Part = Literal["auto", "student_ema_model", "student_model", "model", "teacher_model"]
PARTS: tuple[Part, ...] = ("student_ema_model", "student_model", "model", "teacher_model")
"""The networks a file may hold; "auto" takes the first of these that is there."""
ROTARY = "rotary_emb.inv_freq"
BLOCK = re.compile(r"^blocks\.(\d+)\.")


def load(
    source: Path,
    *,
    part: Part = "auto",
    vocab_size: int | None = None,
    length: int = 1024,
    heads: int | None = None,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> DiT:
    """The network in a folder that `DiT.save` (or a run) wrote, in a file of Apple's, or in a safetensors file with its names.

    vocab_size       the rows of the embedding that the caller needs (mask included); None takes any
    length, dropout  files do not say them: Apple trained with 1024 and 0.1. A folder's configuration does
    heads            for files without `rotary_emb.inv_freq`
    Raises RelgradError for what is no such file or would run code, for another vocabulary, and for missing, unexpected or
    misshapen weights, by name.
    """
    source = newest(Path(source))
    if source.is_dir():
        model = DiT.load(source).to(dtype)
    elif not source.is_file():
        raise RelgradError(f"{source}: no such file or folder")
    else:
        state = read(source, part)
        config = sizes(state, str(source), length=length, heads=heads, dropout=dropout)
        require_vocabulary(config, vocab_size, str(source))
        rotary = state.pop(ROTARY, None)
        own = inverse_frequencies(config.hidden // config.heads)
        if rotary is not None and not torch.allclose(rotary.float(), own, rtol=1e-5, atol=0):
            raise RelgradError(
                f"{source}: {ROTARY} is not this network's (base 10000 in float32): {rotary.flatten()[:3].tolist()} ... "
                f"instead of {own[:3].tolist()} ...; weights trained with other rotary positions cannot be used"
            )
        # views of the file are copied one by one, so that neither the file is held nor memory used twice
        model = DiT.of(config, {n: t.to(dtype, copy=True) for n, t in state.items()}, str(source))
    require_vocabulary(model.config, vocab_size, str(source))
    return model


def read(file: Path, part: Part = "auto") -> dict[str, Tensor]:
    """The tensors of one network in a file, under bare names. Raises RelgradError when it is not there."""
    content: Any = files.read(file) if file.suffix == ".safetensors" else load_tensors(file, mmap=True)
    if not isinstance(content, Mapping):
        raise RelgradError(f"{file}: not a checkpoint: a {type(content).__name__}")
    held = [p for p in PARTS if isinstance(content.get(p), Mapping)]
    if part == "auto" and not held:
        held_state: Any = content
    elif part == "auto":
        held_state = content[held[0]]
    elif part in held:
        held_state = content[part]
    else:
        raise RelgradError(f"{file}: no {part!r} in it; it has {', '.join(held) or 'no network under a name'}")
    state = files.unwrapped(held_state, str(file))
    strange = [n for n, v in state.items() if not (isinstance(v, Tensor) and v.is_floating_point())]
    if not any(isinstance(v, Tensor) for v in state.values()):
        raise RelgradError(
            f"{file}: no network in it; it has {', '.join(map(str, content)) or 'nothing'}, "
            f"and a checkpoint of FS-DFM has one of {', '.join(PARTS)}"
        )
    if strange:
        raise RelgradError(f"{file}: no weights of a network: {', '.join(strange[:5])}")
    return state


def sizes(
    state: Mapping[str, Tensor], source: str, *, length: int = 1024, heads: int | None = None, dropout: float = 0.0
) -> DiTConfig:
    """The configuration that the tensors' shapes say. Raises RelgradError where one that tells is missing."""
    vocab_size, hidden = _shape(state, "vocab_embed.weight", 2, source)
    cond_dim, _ = _shape(state, "time_embedding.mlp.2.weight", 2, source)
    inner, _ = _shape(state, "blocks.0.mlp.0.weight", 2, source)
    blocks = 1 + max(int(match[1]) for name in state if (match := BLOCK.match(name)))
    if ROTARY in state:
        (half,) = _shape(state, ROTARY, 1, source)
        heads = hidden // (2 * half)
    elif heads is None:
        raise RelgradError(f"{source}: no {ROTARY} in it, which tells how many heads there are; say `heads`")
    try:
        return DiTConfig(
            vocab_size=vocab_size, hidden=hidden, blocks=blocks, heads=heads, cond_dim=cond_dim, length=length,
            mlp_ratio=inner // hidden, dropout=dropout, step_conditioned="time_condition_fuser.weight" in state,
        )  # fmt: skip
    except ValueError as error:
        raise RelgradError(f"{source}: sizes of no FS-DFM network: {error}") from None


def _shape(state: Mapping[str, Tensor], name: str, dims: int, source: str) -> torch.Size:
    if name not in state:
        raise RelgradError(
            f"{source}: weights of another network. Missing: {name}; it has {', '.join(list(state)[:5])}"
        )
    if state[name].dim() != dims:
        raise RelgradError(f"{source}: {name} has shape {tuple(state[name].shape)}, expected {dims} dimensions")
    return state[name].shape


def require_vocabulary(config: DiTConfig, vocab_size: int | None, source: str) -> None:
    """Raise RelgradError unless the network's embedding has the rows that are needed."""
    have, need = config.vocab_size, vocab_size
    if need is None or have == need:
        return
    fix = "use the tokenizer that it was trained with"
    if have == need - 1:
        fix += ". One row less is a network without a mask id: its source is uniform, so set source: uniform"
    elif have == need + 1:
        fix += ". One row more is a network with a mask id: its source is the mask, so set source: mask"
    raise RelgradError(
        f"{source}: a network with {have} embeddings, but the vocabulary of this recipe has {need}: {fix}"
    )
