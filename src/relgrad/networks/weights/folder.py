"""Where weights lie, and how our own networks are kept there.

A folder holds `config.json` and `model.safetensors`. A stage's folder has several of them; its newest checkpoint counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.networks.weights import files

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def newest(source: Path) -> Path:
    """`source` itself, or its newest complete checkpoint where it is the folder of a stage (`runs/fill/1-sft`)."""
    checkpoints = [p.parent.parent for p in Path(source).glob("checkpoints/step_*/trainer/state.json")]
    return max(checkpoints, key=lambda p: int(p.name.removeprefix("step_")), default=Path(source))


class SavedNetwork(nn.Module):
    """A network that is built of its configuration alone. `called` is what messages call it ("an FS-DFM network")."""

    config_type: ClassVar[type[Strict]]
    called: ClassVar[str]
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config.model_dump(), indent=2), encoding="utf-8")
        save_file({n: p.detach().contiguous() for n, p in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote. Raises RelgradError for a folder without it, and for files that are damaged."""
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise RelgradError(f"{folder}: no {name}; give a folder with {cls.called}")
        try:
            config = cls.config_type.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise RelgradError(f"{folder / CONFIG}: not the configuration of {cls.called}: {error}") from None
        return cls.of(config, files.read(folder / WEIGHTS), str(folder))

    @classmethod
    def of(cls, config: Strict, state: Mapping[str, Tensor], source: str) -> Self:
        """A network that holds the tensors given (no copies). Raises RelgradError as `take` does."""
        with torch.device("meta"):
            model = cls(config)
        model.take(state, source, assign=True)
        return model.eval()

    def take(self, state: Mapping[str, Tensor], source: str, *, assign: bool = False) -> None:
        """Load weights by name. Raises RelgradError naming what is missing, unexpected, of another shape, or no number."""
        own = self.state_dict()
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        wrong = [n for n in sorted(own.keys() & state.keys()) if own[n].shape != state[n].shape]
        if missing or unexpected or wrong:
            shapes = [f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}" for n in wrong]
            raise RelgradError(
                f"{source}: weights of another network. Missing: {_named(missing)}; unexpected: {_named(unexpected)}; "
                f"of another shape: {_named(shapes)}"
            )
        files.require_finite(state.items(), source)
        self.load_state_dict(state, assign=assign)


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "none") + rest
