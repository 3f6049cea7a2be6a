"""A transformer's shape, and what follows from it by arithmetic: parameters, operations, bytes.

    forward operations of a position = 2 x (weights of the matrices that it goes through) + 4 x context x query width x layers

for a multiply and an add each (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), attention included; a backward pass takes twice
that, or once where the weights are frozen. What autograd keeps is counted in numbers of a position and layer, by implementation;
the counts are those of the code, and tests hold them against what autograd really saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relgrad.core.errors import RelgradError

MIXED_NORMS = 4.0
"""Numbers of the hidden width that norms keep in float32 where the rest is of 16 bits."""


@dataclass(frozen=True)
class Kept:
    """How many numbers of each width a layer keeps for one position's backward pass."""

    hidden: float
    inner: float
    query: float = 0.0
    key: float = 0.0


@dataclass(frozen=True)
class Transformer:
    """The shape of a network.

    hidden, inner          width of the residual stream and inside the feed-forward part
    query, key             width of all queries together, and of all keys (as of all values)
    vocabulary             rows of the embedding and of the head
    other                  parameters beside embedding, head and the layers' matrices
    matrices               layer's matrices by name: (inputs, outputs)
    tied                   whether the head is the embedding
    """

    layers: int
    hidden: int
    inner: int
    query: int
    key: int
    vocabulary: int
    matrices: Mapping[str, tuple[int, int]]
    kept: Kept
    other: int = 0
    tied: bool = False

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        return sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_weights + self.head * (1 if self.tied else 2) + self.other

    def operations(self, positions: float, context: float) -> float:
        """Of a forward pass through the layers, for so many positions that each see `context` others."""
        return positions * self.layers * (2 * self.layer_weights + 4 * context * self.query)

    def head_operations(self, positions: float) -> float:
        return positions * 2 * self.head

    def kept_bytes(self, size: int, recomputed: bool = False) -> float:
        """What a position keeps for the backward pass, in numbers of `size` bytes.

        `recomputed`: a layer keeps its input alone (gradient checkpointing), and one layer at a time all of it.
        """
        kept = self.kept
        layer = size * (
            kept.hidden * self.hidden + kept.inner * self.inner + kept.query * self.query + kept.key * self.key
        )
        layer += MIXED_NORMS * 4 * self.hidden if size < 4 else 0
        ends = 2 * size * self.hidden
        return layer + self.layers * size * self.hidden + ends if recomputed else self.layers * layer + ends

    def passing_bytes(self, size: int) -> float:
        """What a position needs while it goes through one layer, forward or backward, beside what is kept."""
        return size * (4 * self.hidden + 2 * self.inner + self.query + 2 * self.key)

    def cached_bytes(self, size: int) -> float:
        """Keys and values of one position."""
        return 2.0 * size * self.layers * self.key

    def adapter(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Parameters of LoRA on the layers' matrices of these names ("all-linear": all). Raises RelgradError for another name."""
        names = tuple(self.matrices) if targets == "all-linear" else (targets,) if isinstance(targets, str) else targets
        if unknown := [name for name in names if name not in self.matrices]:
            raise RelgradError(
                f"no estimate for lora.target_modules={unknown[0]!r}; it can be made for all-linear and {', '.join(self.matrices)}"
            )
        return self.layers * sum(rank * sum(self.matrices[name]) for name in names)


NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "inner": ("intermediate_size", "mlp_hidden_size", "n_inner"),
    "vocabulary": ("vocab_size", "embedding_size"),
}
"""What configurations call these."""
LEAN, MODULES = Kept(4, 4, 3, 3), Kept(6, 4, 2, 2)
LEAN_NORMED, MODULES_NORMED = Kept(4, 4, 4, 4), Kept(6, 4, 4, 4)
"""Of this house's own forward pass through a decoder, and of the library's modules; with norms of queries and keys."""


def of_config(config: Mapping[str, Any], lean: bool) -> Transformer:
    """A gated decoder (Llama, Qwen, Mistral, LLaDA, Dream ...) from its config.json. Raises RelgradError for another kind.

    lean  whether this house's own forward pass runs it, which keeps less
    """
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if experts:
        raise RelgradError(f"no estimate for a mixture of {experts} experts")
    sizes = {key: _first(config, names) for key, names in NAMES.items()}
    kind = str(config.get("model_type", "")).lower()
    hidden, heads = sizes["hidden"], sizes["heads"]
    groups = config.get("num_key_value_heads") or config.get("n_kv_heads") or heads
    size = config.get("head_dim") or hidden // heads
    query, key, inner = heads * size, groups * size, sizes["inner"]
    normed = kind.startswith(("qwen3", "sdar", "refusion"))
    biased = config.get("attention_bias", kind in ("qwen2", "dream"))
    matrices = {
        "q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key), "o_proj": (query, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }  # fmt: skip
    norms = 2 * hidden + (2 * size if normed else 0) + (query + 2 * key if biased else 0)
    kept = (LEAN_NORMED if normed else LEAN) if lean else (MODULES_NORMED if normed else MODULES)
    return Transformer(
        layers=sizes["layers"], hidden=hidden, inner=inner, query=query, key=key, vocabulary=sizes["vocabulary"],
        matrices=matrices, kept=kept, other=sizes["layers"] * norms + hidden,
        tied=bool(config.get("tie_word_embeddings", config.get("weight_tying", False))),
    )  # fmt: skip


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise RelgradError(f"no estimate for this model: its config.json has none of {', '.join(names)}")


def diffusion_gpt(
    layers: int, hidden: int, vocabulary: int, positions: int, *, bias: bool = False, absolute: bool = False
) -> Transformer:
    """networks/diffusion_gpt: layer norms, attention from one matrix, an inner width of four, the head tied to the embedding."""
    matrices = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, 4 * hidden),
        "mlp.c_proj": (4 * hidden, hidden),
    }
    per_layer = 2 * hidden + ((2 + 3 + 1 + 4 + 1) * hidden if bias else 0)
    other = layers * per_layer + hidden * (2 if bias else 1) + (positions * hidden if absolute else 0)
    return Transformer(
        layers=layers, hidden=hidden, inner=4 * hidden, query=hidden, key=hidden, vocabulary=vocabulary,
        matrices=matrices, kept=Kept(11, 2), other=other, tied=True,
    )  # fmt: skip


FREQUENCIES = 256


def diffusion_transformer(
    layers: int, hidden: int, vocabulary: int, condition: int, ratio: int = 4, *, step_conditioned: bool = False
) -> Transformer:
    """networks/fsdfm: adaptive norms told the time; an untied head with a bias."""
    matrices = {
        "qw": (hidden, hidden), "kw": (hidden, hidden), "vw": (hidden, hidden), "attn_out": (hidden, hidden),
        "mlp.0": (hidden, ratio * hidden), "mlp.2": (ratio * hidden, hidden),
    }  # fmt: skip
    embedder = FREQUENCIES * condition + condition + condition * condition + condition
    fuser = 2 * condition * condition + condition
    modulation = lambda widths: (condition + 1) * widths * hidden  # noqa: E731
    per_layer = 2 * hidden + (ratio + 1) * hidden + modulation(6) + (fuser if step_conditioned else 0)
    other = layers * per_layer + embedder + hidden + vocabulary + modulation(2)
    other += embedder + 4 * condition * condition + 2 * condition + fuser if step_conditioned else 0
    return Transformer(
        layers=layers, hidden=hidden, inner=ratio * hidden, query=hidden, key=hidden, vocabulary=vocabulary,
        matrices=matrices, kept=Kept(15.25, 2), other=other,
    )  # fmt: skip
