"""One file of masked samples: safetensors, so that any program can read it and none can be run by reading it.

    truth_ids, masked_ids, label_ids   int32 [N, L], padded on the right with the padding id (labels: IGNORE)
    lengths                            int32 [N], real ids of each row
    mask_ratio                         float32 [N], share of the real ids that is masked
    strategy                           int8 [N], index into the header's `strategies`

The header's one entry, `relgrad`, is a JSON object: strategies, vocabulary (fingerprint), seed, split and file number. The
same samples give the same bytes in every process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.text.masking import IGNORE

HEADER = "relgrad"
COLUMNS = {
    "truth_ids": np.int32, "masked_ids": np.int32, "label_ids": np.int32, "lengths": np.int32,
    "mask_ratio": np.float32, "strategy": np.int8,
}  # fmt: skip


class SampleFile(NamedTuple):
    """The columns of one file (see the module); `strategies` has one name per row."""

    truth_NL: np.ndarray
    masked_NL: np.ndarray
    label_NL: np.ndarray
    length_N: np.ndarray
    strategies: tuple[str, ...]
    header: Mapping[str, Any]

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(truth ids, masked ids, label ids) of one sample, without padding."""
        length = int(self.length_N[number])
        return self.truth_NL[number, :length], self.masked_NL[number, :length], self.label_NL[number, :length]


def encode(samples: Sequence[Prompt], width: int, pad_id: int, header: Mapping[str, Any]) -> bytes:
    """The content of a file with these masked prompts, `width` ids wide."""
    strategies = sorted({p.columns["strategy"] for p in samples})
    arrays = {
        "truth_ids": _padded([p.columns["truth_ids"] for p in samples], width, pad_id),
        "masked_ids": _padded([p.columns["masked_ids"] for p in samples], width, pad_id),
        "label_ids": _padded([p.columns["label_ids"] for p in samples], width, IGNORE),
        "lengths": np.array([len(p.columns["truth_ids"]) for p in samples], np.int32),
        "mask_ratio": np.array([p.columns["mask_ratio"] for p in samples], np.float32),
        "strategy": np.array([strategies.index(p.columns["strategy"]) for p in samples], np.int8),
    }
    # one entry: safetensors writes several in an order that differs from process to process
    return save(arrays, {HEADER: json.dumps({**header, "strategies": strategies}, sort_keys=True)})


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> np.ndarray:
    out = np.full((len(rows), width), value, np.int32)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out


def read(path: Path) -> SampleFile:
    """The samples of a file. Raises RelgradError for what is not such a file, or is cut off."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
    except (SafetensorError, ValueError, OSError) as error:
        raise RelgradError(f"{path}: not a file of masked samples, or cut off ({error}). {_again(path)}") from None
    problem = _problem(arrays, header)
    if problem:
        raise RelgradError(f"{path}: not a file of masked samples: {problem}. {_again(path)}")
    names = tuple(header["strategies"][i] for i in arrays["strategy"])
    truth_NL, masked_NL, label_NL, length_N = (arrays[n] for n in ("truth_ids", "masked_ids", "label_ids", "lengths"))
    return SampleFile(truth_NL, masked_NL, label_NL, length_N, names, header)


def _problem(arrays: Mapping[str, np.ndarray], header: Any) -> str:
    """What is wrong with the content of a file, or nothing."""
    if not isinstance(header, dict) or not isinstance(header.get("strategies"), list):
        return f"its header has no entry {HEADER!r} with the names of the strategies"
    if arrays.keys() != COLUMNS.keys():
        return f"it has the columns {', '.join(sorted(arrays)) or 'none'}, not {', '.join(COLUMNS)}"
    rows, *width = arrays["truth_ids"].shape
    for name, kind in COLUMNS.items():
        shape = (rows, *width) if name.endswith("_ids") else (rows,)
        if arrays[name].shape != shape or arrays[name].dtype != kind or len(width) != 1:
            return f"{name} is {arrays[name].dtype} {arrays[name].shape}, not {np.dtype(kind)} {shape}"
    if ((arrays["lengths"] < 1) | (arrays["lengths"] > width[0])).any():
        return f"a length is outside 1 to {width[0]}"
    if ((arrays["strategy"] < 0) | (arrays["strategy"] >= len(header["strategies"]))).any():
        return f"a strategy is outside 0 to {len(header['strategies']) - 1}"
    return ""


def _again(path: Path) -> str:
    return f"Delete it and run `relgrad prepare --out {path.parent.parent}`, which writes it again"


def write_atomic(path: Path, content: bytes) -> None:
    """Write so that `path` never holds half of the content, whatever happens to this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(neighbour, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)
