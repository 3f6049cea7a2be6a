"""Opening a masked network: which family a folder is of, whose code runs it, and what stands for the mask.

A folder or hub name with code of its own runs that code where the recipe says `trust_remote_code`. Otherwise the class of
transformers that computes the same is taken, where there is one; else the error names the setting.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.masked import tiny
from relgrad.networks.masked.attention import ATTENTION, register_attention
from relgrad.networks.masked.families import FAMILIES, bidirectional
from relgrad.networks.masked.family import Family, Library
from relgrad.networks.masked.names import patterns, to_library
from relgrad.networks.masked.network import LibraryNetwork
from relgrad.networks.masked.probe import require_both_sides
from relgrad.networks.weights import files

SAVED = "masked_diffusion"
"""The entry of config.json in which a saved folder says family, shift and mask."""
ADDED_MASK = "<|mask|>"


@dataclass(frozen=True)
class Checkpoint:
    """What a recipe says of the network it starts from; None leaves it to the folder and its family.

    model       folder, hub name, .gguf file, bundled or tiny name
    shift       whether what comes out at a position speaks for the next one
    mask_token  the token, or its id
    """

    model: str
    family: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    quantize: str | None = None
    shift: bool | None = None
    mask_token: str | int | None = None


class Opened(NamedTuple):
    """A network, its tokenizer, and what a person should know of how it was opened."""

    network: LibraryNetwork
    tokenizer: Any
    notes: tuple[str, ...]


def resolve(name: str) -> str:
    """A folder or hub name that `from_pretrained` takes. Raises RelgradError as causal.load.resolve does."""
    return str(tiny.folder(name, causal.cache_dir())) if tiny.is_tiny(name) else causal.resolve(name)


def open_network(checkpoint: Checkpoint, adapt: Callable[[Any], Any] = lambda model: model) -> Opened:
    """The network of a recipe, on the CPU (or, quantised, where bitsandbytes puts it), in eval mode.

    `adapt` puts an adapter on the model, where the recipe has one. Raises RelgradError for a family that is not known, a folder
    that needs its own code, a model without a mask, and settings that contradict what the folder was trained with.
    """
    source = causal.reachable(resolve(checkpoint.model))
    config = _config(source, checkpoint.model)
    family = family_of(config, checkpoint)
    own_code = checkpoint.trust_remote_code and "auto_map" in config
    tokenizer = _tokenizer(source, family, own_code)
    model = _model(source, config, family, checkpoint)
    mask_id = _mask_id(config, family, checkpoint, tokenizer, model)
    notes: tuple[str, ...] = ()
    if mask_id is None:
        mask_id = add_mask(model, tokenizer)
        notes = (f"a mask was added to the vocabulary: {ADDED_MASK} (id {mask_id})",)
    elif family.library is not None and "auto_map" in config and not own_code:
        notes = (f"{family.name} runs on transformers' {family.library.model}; the folder's own code is not run",)
    network = LibraryNetwork(
        adapt(model),
        family,
        config,
        source=source,
        own_code=own_code,
        mask_id=mask_id,
        shifted=_shifted(config, family, checkpoint),
        block=None if family.block is None else int(config.get("block_size") or family.block),
    )
    if not own_code:
        require_both_sides(network, checkpoint.model)
    return Opened(network, tokenizer, notes)


def random_network(name: str, config: Mapping[str, Any], *, own_code: bool) -> LibraryNetwork:
    """A tiny network of a family with random weights that are always the same, without a folder: for tests."""
    family, model = FAMILIES[name], tiny.own_model(name, config)
    if not own_code:
        assert family.library is not None
        register_attention()
        kind, library_config = library_class(config, family.library)
        own, library_config._attn_implementation = model.state_dict(), ATTENTION
        model = kind(library_config)
        model.load_state_dict({to_library(n, family.library.renamed): t for n, t in own.items()})
    block = None if family.block is None else int(config["block_size"])
    mask_id = int(config["mask_token_id"])
    return LibraryNetwork(
        model, family, config, source=name, own_code=own_code, mask_id=mask_id, shifted=family.shifted, block=block
    )


# ---------------------------------------------------------------------- which family


def family_of(config: Mapping[str, Any], checkpoint: Checkpoint) -> Family:
    """The family that the recipe names, or that the folder's configuration is of. Raises RelgradError for none."""
    names = ", ".join(FAMILIES)
    if checkpoint.family is not None and checkpoint.family not in FAMILIES:
        raise RelgradError(f"policy.family={checkpoint.family!r}: known are {names}")
    kind = str(config.get("model_type"))
    mixture = any("MoE" in name for name in config.get("architectures") or ())
    detected = config.get(SAVED, {}).get("family") or next(
        (name for name, family in FAMILIES.items() if kind in family.model_types), None
    )
    if detected == "llada" and mixture:
        detected = "llada_moe"
    named = checkpoint.family or detected
    if named is None:
        raise RelgradError(
            f"model {checkpoint.model!r}: no family of masked-diffusion models is known by model_type={kind!r}. To train a causal "
            f"language model as one, set policy.family=bidirectional; else name the family it is of: {names}"
        )
    if detected is not None and named != detected:
        raise RelgradError(
            f"policy.family={named!r}, but model {checkpoint.model!r} is of the family {detected!r} (model_type={kind!r}): its "
            "code takes other inputs, or its outputs stand elsewhere. Leave policy.family out"
        )
    return FAMILIES[named]


def _shifted(config: Mapping[str, Any], family: Family, checkpoint: Checkpoint) -> bool:
    trained: bool | None = config.get(SAVED, {}).get("shifted")
    if trained is not None and checkpoint.shift is not None and trained != checkpoint.shift:
        raise RelgradError(
            f"policy.shift={checkpoint.shift}, but model {checkpoint.model!r} was trained with shift: {trained}. Leave it out"
        )
    chosen = checkpoint.shift if checkpoint.shift is not None else trained
    return family.shifted if chosen is None else chosen


# ---------------------------------------------------------------------- whose code


def _config(source: str, name: str) -> dict[str, Any]:
    """What config.json says, without running any code of the folder's. Raises RelgradError."""
    from transformers.utils import cached_file

    try:
        config = json.loads(Path(cached_file(source, "config.json")).read_text(encoding="utf-8"))
    except Exception as error:  # the hub, the disk, a file that is no JSON
        raise RelgradError(f"model {name!r}: its config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise RelgradError(f"model {name!r}: its config.json is not a JSON object, but {type(config).__name__}")
    return config


def _model(source: str, config: Mapping[str, Any], family: Family, checkpoint: Checkpoint) -> Any:
    import transformers

    own_code = checkpoint.trust_remote_code and "auto_map" in config
    options: dict[str, Any] = {"dtype": causal.DTYPES[checkpoint.dtype]}
    if checkpoint.quantize is not None:
        options["quantization_config"] = causal.quantisation(checkpoint.quantize)
    if own_code:
        options["trust_remote_code"] = True
        kind = getattr(transformers, family.auto)
    elif family.library is None:
        raise RelgradError(
            f"model {checkpoint.model!r} ({family.name}) runs on code that comes with its folder: read it, then set "
            "policy.trust_remote_code=true"
        )
    else:
        register_attention()
        kind, library_config = library_class(config, family.library)
        options |= {"config": library_config, "attn_implementation": ATTENTION}
        if family.library.renamed:
            options["key_mapping"] = patterns(family.library.renamed)
    try:
        model, problems = causal.from_library(kind, source, **options)
    except RelgradError as error:
        hint = _other_code(family) if own_code else ""
        raise RelgradError(f"{error}{hint}") from error
    if problems.missing or problems.misshapen:
        raise RelgradError(
            f"model {checkpoint.model!r}: its files are not those of a whole {type(model).__name__} ({problems})"
        )
    files.require_finite(model.named_parameters(), f"model {checkpoint.model!r}")
    return model.eval()


def _other_code(family: Family) -> str:
    """What to try where a folder's own code fails, which is often written for one version of transformers alone."""
    import transformers

    advice = f". This is transformers {transformers.__version__}; the folder's own code may need another"
    return (
        advice
        if family.library is None
        else f"{advice}. Without policy.trust_remote_code {family.library.model} is used"
    )


def library_class(config: Mapping[str, Any], library: Library) -> tuple[Any, Any]:
    """The class of transformers and its configuration of a folder. Raises RelgradError for what it does not compute."""
    import transformers

    name = library.model
    if name == "AutoModelForCausalLM":
        name = bidirectional.A2D.get(str(config.get("model_type")), name)
    own = {k: v for k, v in config.items() if k not in ("auto_map", "architectures", "model_type", SAVED)}
    if name == "AutoModelForCausalLM":
        made = transformers.AutoConfig.for_model(config["model_type"]).from_dict(own)
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(made), None)
        if kind is None:
            raise RelgradError(f"model_type={config['model_type']!r}: transformers has no causal language model of it")
        restricted = {k for k in getattr(made, "layer_types", None) or () if k != "full_attention"}
        if restricted:
            raise RelgradError(
                f"model_type={config['model_type']!r} has layers of {', '.join(sorted(restricted))}, which cannot be made to look "
                "to both sides: take a model whose layers all have full attention"
            )
        return kind, made
    kind = getattr(transformers, name)
    return kind, kind.config_class.from_dict(library.config(own))


def _tokenizer(source: str, family: Family, own_code: bool) -> Any:
    """The folder's tokenizer; without its own code, the class of transformers that reads the same files."""
    import transformers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.utils import logging

    needs_code = "auto_map" in get_tokenizer_config(source)
    if needs_code and not own_code and family.library is not None and family.library.tokenizer is not None:
        return getattr(transformers, family.library.tokenizer).from_pretrained(source)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of a `model_type` that it does not know, and needs no model
    try:
        return causal.load_tokenizer(source, trust_remote_code=own_code)
    finally:
        logging.set_verbosity(level)


# ---------------------------------------------------------------------- the mask


def _mask_id(
    config: Mapping[str, Any], family: Family, checkpoint: Checkpoint, tokenizer: Any, model: Any
) -> int | None:
    """The id of the mask; None where a mask is to be added. Raises RelgradError for a model without one."""
    entries = model.get_input_embeddings().weight.shape[0]
    named = checkpoint.mask_token
    if isinstance(named, str):
        mask_id = tokenizer.get_vocab().get(named)
        if mask_id is None:
            raise RelgradError(f"policy.mask_token={named!r}: the tokenizer of {checkpoint.model!r} has no such token")
    elif named is not None:
        mask_id = named
    else:
        candidates = (config.get(SAVED, {}).get("mask_token_id"), config.get("mask_token_id"), tokenizer.mask_token_id)
        mask_id = next((i for i in candidates if i is not None), family.mask_id)
    if mask_id is None and family is bidirectional.FAMILY:
        return None
    if mask_id is None or not 0 <= mask_id < entries:
        where = "no mask token" if mask_id is None or named is None else f"no embedding for policy.mask_token={named!r}"
        raise RelgradError(
            f"model {checkpoint.model!r} ({family.name}) has {where}: neither config.json (mask_token_id) nor the tokenizer names "
            f"one, and the family's own, {family.mask_id}, is not among its {entries} embeddings. Set policy.mask_token to the "
            "token, or to its id"
        )
    return int(mask_id)


@torch.no_grad()
def add_mask(model: Any, tokenizer: Any) -> int:
    """Add a mask to the vocabulary and return its id; its rows of embedding and head are the means of the others."""
    tokenizer.add_special_tokens({"mask_token": ADDED_MASK})
    mask_id = int(tokenizer.mask_token_id)
    before = model.get_input_embeddings().weight.shape[0]
    if mask_id >= before:
        model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        others_VH = torch.cat([table.weight[:mask_id], table.weight[mask_id + 1 : before]])
        table.weight[mask_id] = others_VH.float().mean(0).to(table.weight.dtype)
    return mask_id


# ---------------------------------------------------------------------- writing folders


def saved_config(network: LibraryNetwork) -> dict[str, Any]:
    """The config.json of a folder that holds the network's weights: that of the folder it is from, with family, shift and mask.

    Of a hub name, the code stays on the hub: its name is put before the classes that `auto_map` names.
    """
    config = copy.deepcopy(network.config)
    if network.family is bidirectional.FAMILY:
        config["vocab_size"] = network.vocabulary_size
    if "auto_map" in config and not Path(network.source).is_dir():
        config["auto_map"] = {k: v if "--" in v else f"{network.source}--{v}" for k, v in config["auto_map"].items()}
    config[SAVED] = {"family": network.family.name, "shifted": network.shifted, "mask_token_id": network.mask_id}
    return config
