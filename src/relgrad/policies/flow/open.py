"""What a flow policy is made of, from a recipe's settings: a new network, a run's folder or a checkpoint file; and back to disk.

A folder holds the network (or an adapter), `vocabulary.json`, and `flow.json`: scheduler, source, the id that ends a text, of a
few-step student its finest step, and for an adapter the network under it: a size, or a file or folder by the recipe's name for it
(`base`) and as seen from the adapter's own folder (`base_from_here`). Where a recipe also says one of these, it must say the
same: a network is trained for one vocabulary, source and scheduler, and a student for halvings of one step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import ValidationError

from relgrad.core.errors import RelgradError
from relgrad.laws.schedule import Scheduler
from relgrad.networks.causal.load import DTYPES
from relgrad.networks.fsdfm import lora, published_files
from relgrad.networks.fsdfm.network import SIZES, DiT, DiTConfig
from relgrad.networks.weights import device, files
from relgrad.networks.weights.folder import WEIGHTS, newest
from relgrad.networks.weights.keeper import take_average
from relgrad.policies.flow.settings import Settings
from relgrad.policies.flow.supervised.few_step import FewStep
from relgrad.policies.flow.symbols import Symbols, make_symbols
from relgrad.text.vocabulary import FILE, Vocabulary

FLOW, ADAPTER = "flow.json", "adapter_config.json"
PUBLISHED = Scheduler("polynomial", 1.0)
"""That of all configurations in apple/ml-fs-dfm. Its checkpoint files do not say theirs."""
PUBLISHED_FINEST = 1024
"""The finest step of its students, likewise."""


class Opened(NamedTuple):
    """The parts of a policy.

    adapted  the PeftModel around `model`, where there are adapters
    base     what is under them: the size of a new network, whose weights follow from `seed`; a file or folder by the recipe's name
             for it; or (a Path) one that the recipe does not name, such as the folder of the stage before
    finest   of a few-step student: into how many steps time was divided in its training
    """

    model: DiT
    symbols: Symbols
    scheduler: Scheduler
    adapted: Any
    base: str | Path
    seed: int = 0
    finest: int | None = None


def open_parts(settings: Settings, seed: int, start: Path | None) -> Opened:
    """Network, symbols and scheduler of a recipe, going on from the folder `start` where an earlier stage saved one.

    Averaged weights, where a folder has them, are taken as the weights. Raises RelgradError.
    """
    own_weights = None if settings.model in SIZES else Path(settings.model).expanduser()
    source = own_weights if start is None else Path(start)
    if source is not None and not source.exists():
        raise _absent(settings)
    source = None if source is None else newest(source)
    saved = {} if source is None else configuration(source)
    symbols = _symbols(settings, source, saved)
    scheduler = _scheduler(settings, source, saved)
    adapter = source if source is not None and (source / ADAPTER).is_file() else None
    base = settings.model if start is None or source is None else source.absolute()
    if adapter is not None:
        base = _base_of(adapter, saved, settings)
    base_seed = int(saved.get("seed", seed))
    model = _network(settings, base_seed, symbols, base)
    if adapter is None and source is not None:
        take_average(model, source)
    if settings.few_step is not None and not model.config.step_conditioned:
        model = model.student()
    finest = _finest(settings, saved, symbols) if model.config.step_conditioned else None
    model.checkpointing = settings.gradient_checkpointing
    if settings.lora is None:  # under adapters the weights themselves are of that dtype
        model.arithmetic = DTYPES[settings.dtype]
    model.to(device.choose(settings.device))
    adapted = _adapted(settings, seed, model, adapter)
    return Opened(model, symbols, scheduler, adapted, base, base_seed, finest)


def _base_of(adapter: Path, saved: Mapping[str, Any], settings: Settings) -> str | Path:
    """What is under a saved adapter: a size, or the first of these that is there: the recipe's model where the adapter was trained
    on one, what lies where it lay as seen from the adapter, what the adapter's own recipe named. Raises RelgradError for none."""
    name = saved.get("base")
    if name in SIZES:
        return str(name)
    places = [Path(name).expanduser()] if name is not None else []
    if "base_from_here" in saved:
        places.insert(0, Path(os.path.normpath(adapter.absolute() / saved["base_from_here"])))
    recipes = Path(settings.model).expanduser()
    of_recipe = name is not None and ("base_from_here" in saved or name == settings.model)
    if of_recipe and recipes.exists() and not (newest(recipes) / ADAPTER).is_file():
        return settings.model
    for place in places:
        if place.exists():
            return place.absolute()
    where = " and no ".join(map(str, places)) or f"word of it in {FLOW}"
    raise RelgradError(
        f"{adapter}: the network under this adapter is gone: there is no {where} (working directory {Path.cwd()}). Put it back, "
        "or say where it is now: policy.model=FILE"
    )


def _absent(settings: Settings) -> RelgradError:
    """What is said of a `model` that is no size and not there."""
    return RelgradError(
        f"policy.model: {settings.model!r} is neither a size ({', '.join(SIZES)}) nor a file or folder (working directory "
        f"{Path.cwd()}). Put the weights there, or give their path: policy.model=FILE. Apple's are DFM_checkpoint.pth of "
        "huggingface.co/aminr8/FS-DFM (16 GB), or checkpoint.pth of github.com/apple/ml-fs-dfm"
    )


def _finest(settings: Settings, saved: Mapping[str, Any], symbols: Symbols) -> int:
    """The finest step of a student, as its training or its folder says. Raises RelgradError for steps that it was not told."""
    if settings.few_step is not None:
        if symbols.masked and settings.few_step.teacher == "rk4":
            raise RelgradError(
                "few_step.teacher='rk4' needs a uniform source, and this network's is the mask: use half_steps"
            )
        return settings.few_step.finest
    finest = int(saved.get("finest", PUBLISHED_FINEST))
    for steps in (settings.sampling_steps, settings.evaluation_steps or settings.sampling_steps):
        FewStep(finest=finest).require_steps(steps)
    return finest


def settled(start: Path) -> tuple[str, ...]:
    """See protocols.SettledByWeights. An adapter on the recipe's own file or folder still needs to be told where that is."""
    saved = configuration(start)
    return () if (start / ADAPTER).is_file() and saved.get("base") not in (None, *SIZES) else ("model",)


def configuration(source: Path) -> dict[str, Any]:
    """What a checkpoint was trained with: `flow.json` of a folder; of a file, Apple's `config.yaml` beside it, or PUBLISHED."""
    if source.is_dir():
        path = source / FLOW
        if not path.is_file():
            raise RelgradError(f"{source}: no {FLOW}; give the folder of a flow policy, or a checkpoint file of FS-DFM")
        read = _mapping(path)
        if not isinstance(read.get("end_id"), int):
            raise RelgradError(f"{path}: cannot be read: no end_id, the id that ends a text; copy it again")
        return read
    beside = source.parent / "config.yaml"
    if not beside.is_file():
        return PUBLISHED.to_config()
    read = _mapping(beside)
    try:
        scheduler = Scheduler.from_config(read).to_config()
    except RelgradError as error:
        raise RelgradError(f"{beside}: {error}") from None
    section = read.get("flow", read)
    source_of = {"source": section["source_distribution"]} if "source_distribution" in section else {}
    return scheduler | source_of


def _mapping(path: Path) -> dict[str, Any]:
    """A file of named values; JSON is YAML too. Raises RelgradError for another."""
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RelgradError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict):
        raise RelgradError(f"{path}: not a configuration of a flow network, but {type(read).__name__}")
    return read


def _symbols(settings: Settings, source: Path | None, saved: Mapping[str, Any]) -> Symbols:
    if settings.source is not None and settings.source != saved.get("source", settings.source):
        raise RelgradError(
            f"{source} was trained from the source {saved['source']!r}, but the recipe says source: {settings.source}. Leave it "
            "out, or name a checkpoint of that source"
        )
    masked = (settings.source or saved.get("source", "uniform")) == "mask"
    of_recipe = None
    if settings.symbols is not None or not saved or source is None or not (source / FILE).is_file():
        of_recipe = make_symbols(settings.symbols or "ascii", settings.text, settings.end_token, masked=masked)
    if source is None or not (source / FILE).is_file():
        assert of_recipe is not None
        return of_recipe
    symbols = Symbols(Vocabulary.load(source), int(saved["end_id"]), masked)
    if of_recipe is not None:
        symbols.vocabulary.require(of_recipe.vocabulary.fingerprint, "the vocabulary of the recipe (policy.symbols)")
    return symbols


def _scheduler(settings: Settings, source: Path | None, saved: Mapping[str, Any]) -> Scheduler:
    trained = Scheduler.from_config(saved) if saved else Scheduler()
    kind = settings.scheduler or trained.kind
    exponent = settings.exponent
    if exponent is None:
        exponent = trained.exponent if kind == trained.kind else 1.0
    scheduler = Scheduler(kind, exponent)
    if saved and scheduler != trained:
        raise RelgradError(
            f"{source} was trained with the scheduler {trained}, but the recipe says {scheduler}: at a given time the network "
            "would see texts that are noisier or cleaner than it knows. Leave policy.scheduler and policy.exponent out"
            + ("" if source is None or source.is_dir() else ", or put the file's own config.yaml beside it")
        )
    return scheduler


def _network(settings: Settings, seed: int, symbols: Symbols, base: str | Path) -> DiT:
    """The network itself: weights that a folder or file holds, or new ones of a named size."""
    own = settings.network.model_dump(exclude_none=True)
    dtype = torch.float32 if settings.lora is None else DTYPES[settings.dtype]
    if isinstance(base, str) and base in SIZES:
        try:
            config = DiTConfig.preset(base, **own, vocab_size=symbols.size)
        except ValidationError as error:
            raise RelgradError(f"policy.network: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return DiT(config).to(dtype)
    path = Path(base).expanduser()
    fixed_sizes = {k: own[k] for k in ("length", "dropout", "heads") if k in own and not path.is_dir()}
    model = published_files.load(path, part=settings.part, vocab_size=symbols.size, dtype=dtype, **fixed_sizes)
    sizes_of_file = model.config.model_dump()
    other = [
        f"{name}={size} (there {sizes_of_file[name]})" for name, size in own.items() if sizes_of_file[name] != size
    ]
    if other:
        raise RelgradError(f"{base} holds a network of other sizes than policy.network says: {', '.join(other)}")
    return model


def _adapted(settings: Settings, seed: int, model: DiT, adapter: Path | None) -> Any:
    if settings.lora is None:
        if adapter is not None:
            raise RelgradError(f"{adapter} is an adapter: add the lora section that it was trained with")
        return None
    own = settings.lora
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = lora.add_lora(model, r=own.r, alpha=own.alpha, dropout=own.dropout, targets=own.target_modules)
    if adapter is not None:
        lora.load_adapter(adapted, adapter)
        take_average(model, adapter)
    return adapted


def save_parts(parts: Opened, folder: Path) -> None:
    """Write a folder that `open_parts` and `load_weights` read."""
    folder.mkdir(parents=True, exist_ok=True)
    if parts.adapted is None:
        parts.model.save(folder)
    else:
        lora.save_adapter(parts.adapted, folder)
    parts.symbols.vocabulary.save(folder)
    process = _process(parts) | ({} if parts.finest is None else {"finest": parts.finest})
    if parts.adapted is not None:
        process |= {"seed": parts.seed} | _where(parts.base, folder)
    (folder / FLOW).write_text(json.dumps(process, indent=2), encoding="utf-8")


def _where(base: str | Path, folder: Path) -> dict[str, str]:
    """How an adapter's folder says what is under it; see `_base_of`."""
    named = {} if isinstance(base, Path) else {"base": base}
    if base in SIZES:
        return named
    return named | {"base_from_here": os.path.relpath(Path(base).expanduser(), folder)}


def require_same(parts: Opened, folder: Path) -> None:
    """Raise RelgradError where a folder was saved by a policy of another vocabulary, scheduler or source."""
    parts.symbols.vocabulary.require(Vocabulary.load(folder).fingerprint, str(folder))
    saved = configuration(folder)
    if other := [f"{k}={saved.get(k)!r} (here {v!r})" for k, v in _process(parts).items() if saved.get(k) != v]:
        raise RelgradError(f"{folder}: saved by a flow policy with {', '.join(other)}")


def load_weights(parts: Opened, folder: Path) -> None:
    """Read a folder's weights, or its adapter, into the parts. Raises RelgradError where they are of another network."""
    if parts.adapted is not None:
        lora.load_adapter(parts.adapted, folder)
    elif (folder / WEIGHTS).is_file():
        parts.model.take(files.read(folder / WEIGHTS), str(folder))
    else:
        raise RelgradError(f"{folder}: no {WEIGHTS}; an adapter needs the lora section that it was trained with")


def _process(parts: Opened) -> dict[str, Any]:
    source = "mask" if parts.symbols.masked else "uniform"
    return parts.scheduler.to_config() | {"source": source, "end_id": parts.symbols.end_id}
