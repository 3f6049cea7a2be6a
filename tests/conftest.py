"""What holds for the whole suite: one thread per test process, the long files first, the command line made once."""

from __future__ import annotations

import functools
import os

import pytest
import typer.testing

# Tests run side by side, and OpenMP threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The runner makes every command anew, of all their types, for each one that it invokes.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]

LONG = (
    "test_policy_contract", "test_sites_browser", "test_forms_browser", "test_fill_recipe", "test_docs", "test_quick_recipe",
    "test_resume", "test_report", "test_runs_in_processes", "test_engines", "test_run_folders", "test_flow", "test_judge",
    "test_trajectories", "test_stream", "test_bad_input", "test_forms_recipe", "test_bench_gpu", "test_patience",
)  # fmt: skip
"""The files of ten seconds and more, the longest first: one that starts last would keep the other processes waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
