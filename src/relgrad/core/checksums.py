"""Checksums of files: by them damage and change are noticed. Standard library only.

A checksum is {"size": bytes, "sha256": hex digits}. Of a file beyond LARGE bytes, where that is allowed, the digest is of PIECES
evenly spaced stretches of PIECE bytes, the first and the last among them, and the checksum says so by "pieces": weights that were
trained on differ in every one of them, and 5 GB are read in a blink.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import write_json

Checksum = dict[str, Any]
LARGE = 64 * 2**20
PIECES, PIECE = 32, 2**20


def of_text(text: str) -> str:
    """The SHA-256 of a text in UTF-8, as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path, *, pieces: bool = False) -> Checksum:
    """The checksum of a file; with `pieces`, of a large one by some of its content. Raises OSError where it cannot be read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if not pieces or size <= LARGE:
            return {"size": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        digest = hashlib.sha256()
        for number in range(PIECES):
            file.seek(number * (size - PIECE) // (PIECES - 1))
            digest.update(file.read(PIECE))
    return {"size": size, "sha256": digest.hexdigest(), "pieces": PIECES}


def seal(folder: Path, record: Path) -> None:
    """Write the checksums of all files under `folder`, whole, to the file `record` in it, and one of these checksums."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != record)
    sums = {path.relative_to(folder).as_posix(): of_file(path) for path in files}
    write_json(record, {"files": sums, "sha256": of_text(json.dumps(sums))})


def read(record: Path) -> dict[str, Checksum]:
    """The checksums that `seal` wrote. Raises RelgradError where the record is not as it was written."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        sums: dict[str, Checksum] = content["files"]
        intact = content["sha256"] == of_text(json.dumps(sums))
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise RelgradError(f"{record} cannot be read ({type(error).__name__}: {error})") from None
    if not intact:
        raise RelgradError(f"{record} does not hold what was saved")
    return sums


def damage(folder: Path, sums: Mapping[str, Checksum]) -> str | None:
    """What is wrong with the first file under `folder` that is not as its checksum says; None where all are whole."""
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is {'a folder' if path.is_dir() else 'missing'}"
        try:
            actual = of_file(path)
        except OSError as error:
            return f"{path} cannot be read ({error})"
        if actual["size"] != expected.get("size"):
            return f"{path} has {actual['size']:,} bytes, and {expected.get('size')} were saved"
        if actual["sha256"] != expected.get("sha256"):
            return f"{path} does not hold what was saved (its SHA-256 is another)"
    return None
