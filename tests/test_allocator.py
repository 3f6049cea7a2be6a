"""Freed memory is kept: page faults of a process that allocates the same blocks again and again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from relgrad.core import allocator

FAULTS = """
import resource, torch
from relgrad.core import allocator
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work(): del_me = [torch.ones(10_000_000) for _ in range(2)]  # 80 MB
raised = allocator.keep_freed_memory()
if not raised: print(raised, 0); raise SystemExit
for _ in range(20): work()  # aligned blocks need a little more than they leave behind: it takes some rounds to have enough
before = faults()
for _ in range(5): work()
print(raised, faults() - before)
"""


def faults(**environment: str) -> tuple[bool, int]:
    """(whether the thresholds were raised, page faults of five rounds of 80 MB then) in a fresh process."""
    plain = {k: v for k, v in os.environ.items() if k not in allocator.OWN_SETTINGS} | environment
    done = subprocess.run([sys.executable, "-c", FAULTS], env=plain, capture_output=True, text=True, check=True)
    raised, count = done.stdout.split()
    return raised == "True", int(count)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
def test_blocks_are_reused_without_a_page_fault():
    assert faults(MALLOC_MMAP_THRESHOLD_="131072")[0] is False  # a choice of the user's own stays
    raised, count = faults()
    assert raised
    assert count < 1000  # of 5 x 80 MB / 4 KiB = 97,656


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
