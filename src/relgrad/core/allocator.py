"""Freed memory is kept for the next allocation instead of going back to the system.

A training step allocates and frees the same large blocks again and again. glibc maps blocks above 128 KiB (growing to 32 MiB at
most) from the system one by one and gives them back when they are freed, so that every page of every block is faulted in and zeroed
again in every step. With higher thresholds (mallopt(3)) they come from the heap.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM = 1 << 30
"""Bytes of a block from which on it is still mapped from the system and given back."""
NEVER = -1
OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Raise the thresholds of this process; True where that was done.

    False, and nothing changes, on another system or C library than Linux with glibc, and where the environment says something about
    them. The process then holds the most memory it ever used, until it ends.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER) == 1
