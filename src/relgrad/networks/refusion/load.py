"""Loading ReFusion without its remote code: its tensors carry Qwen3's names and shapes, so Qwen3's own class reads them.

What makes it ReFusion is in the tokenizer and in `mask_token_id` of its configuration: a mask, <|mask|> (151670 in the released
one). A folder that has none was not trained to fill slots in, and is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.refusion import tiny


class Loaded(NamedTuple):
    """The model on the CPU (or, quantised, where bitsandbytes puts it), its tokenizer, and the id of the mask."""

    model: Any
    tokenizer: Any
    mask_id: int


def source_of(name: str) -> str:
    """A folder or hub name for any name a recipe may give."""
    return str(tiny.folder(name, causal.cache_dir())) if tiny.is_tiny(name) else name


def load(name: str, *, tokenizer: str | None = None, dtype: str = "float32", quantize: str | None = None) -> Loaded:
    """ReFusion from a folder, the hub or "tiny-refusion". `tokenizer` is another folder for it.

    Raises RelgradError where there is none, for other architectures, and for a model without ReFusion's mask.
    """
    from transformers import Qwen3Config

    source = source_of(name)
    read_tokenizer = causal.load_tokenizer(source_of(tokenizer or name))
    try:
        plain, _ = Qwen3Config.get_config_dict(causal.reachable(source))
    except OSError as error:
        raise RelgradError(f"model {name!r}: no configuration ({' '.join(str(error).split())[:200]})") from None
    if not str(plain.get("model_type", "")).startswith("qwen3") or "num_experts" in plain:
        raise RelgradError(
            f"model {name!r} is a {plain.get('model_type', 'model of no type')}, and ReFusion is a Qwen3: give ReFusion's folder"
        )
    config = Qwen3Config.from_dict({n: v for n, v in plain.items() if n not in ("model_type", "auto_map")})
    config.mask_token_id = mask_id(name, plain.get("mask_token_id"), read_tokenizer, config.vocab_size)
    model = causal.load_model(source, dtype=dtype, quantize=quantize, config=config)
    return Loaded(model, read_tokenizer, config.mask_token_id)


def mask_id(name: str, configured: Any, tokenizer: Any, entries: int) -> int:
    """The id of the mask, which configuration and tokenizer agree on. Raises RelgradError where there is none, or they do not."""
    special = tokenizer.get_added_vocab().get(tiny.MASK)
    if special is None:
        raise RelgradError(
            f"model {name!r}: its tokenizer has no {tiny.MASK}, so this is no ReFusion: a plain Qwen3 has never seen a mask. Give "
            "the folder of GSAI-ML/ReFusion, or of one trained from it, with its tokenizer files"
        )
    if configured not in (None, special):
        raise RelgradError(
            f"model {name!r}: its config.json says mask_token_id={configured}, its tokenizer has {tiny.MASK} as {special}. One of "
            "the two files is another model's: copy both from one folder"
        )
    if special >= entries:
        raise RelgradError(
            f"model {name!r}: {tiny.MASK} is id {special}, and the model has {entries} embeddings: it was not resized for its mask"
        )
    return int(special)
