"""Out of memory, on a GPU or a CPU, becomes an error that says what to lower, after the memory that can be freed was freed."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from relgrad.core.errors import RelgradError

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory", "ALLOC_FAILED")
"""What messages of allocators and libraries say; only CUDA's allocator has an exception of its own."""


class OutOfMemory(RelgradError):
    """There was not enough memory for a step; weights, optimizer and counters are what they were before it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory could not be had."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def spared(doing: str, advice: str) -> Iterator[None]:
    """Raise OutOfMemory where there is not enough memory inside: what it was needed for, and what to lower."""
    what = ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = " ".join(str(error).split())[:200] or type(error).__name__
        traceback.clear_frames(error.__traceback__)  # its frames hold the tensors that filled the memory
    if what:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemory(f"out of memory while {doing} ({what}). {advice}")
