"""SmolLM2 behind `transformers serve`: a real server with a real model, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def served_smollm2(log: Path) -> Iterator[tuple[str, str]]:
    """(url, name of the model) while it runs; skips where the server's libraries are missing."""
    pytest.importorskip("openai")
    from relgrad.networks.causal.load import resolve

    folder = str(resolve("smollm2-135m-instruct"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", folder, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
            return
        time.sleep(0.5)
    raise AssertionError(f"nothing listens at port {port}")
