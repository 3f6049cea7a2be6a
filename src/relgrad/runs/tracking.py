"""Where the figures of every step go: metrics.jsonl always, TensorBoard, Weights & Biases and trackio on request.

The JSONL file is the record of the run; everything else mirrors it. A failure to write the record stops the run, a
mirror that fails is dropped with a warning: a broken dashboard must not end a night of training.

Each library is imported when its tracker is made, never before. `relgrad.monitor.console.Console` is the live display.
"""

from __future__ import annotations

import importlib
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Tracker
from relgrad.core.run_folder import RunDir, write_atomic
from relgrad.core.secrets import hide_in, hide_known, without_secrets

Warn = Callable[[str], None]


class JsonLines:
    """Appends {"step", "time" (seconds since 1970), figures…} to the run's metrics.jsonl; NaN becomes null."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.append("metrics.jsonl", {"step": step, "time": time.time(), **metrics})

    def close(self) -> None:
        """Nothing to do: every line is complete when `log` returns."""


class TensorBoard:
    """Writes event files to `<run>/tensorboard`; look with `tensorboard --logdir runs`.

    `first_step` is the first step this process will log: what a killed process had logged from there on is hidden.
    """

    def __init__(self, run: RunDir, first_step: int = 0) -> None:
        _library("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.root / "tensorboard"), purge_step=first_step or None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Logs to Weights & Biases under one run id per run folder, so that a resumed run continues its own curves.

    WANDB_MODE decides between online and offline. Where it is unset, a machine without a login or without a way to
    the server logs offline and `warn` tells how to upload later.
    """

    def __init__(self, run: RunDir, name: str, config: Mapping[str, Any], warn: Warn = print) -> None:
        self.wandb = _library("wandb", "wandb")
        settings = {"console": "off", "x_disable_meta": True, "disable_code": True, "init_timeout": 30.0}
        arguments = {
            "project": os.environ.get("WANDB_PROJECT", "relgrad"),
            "name": name,
            "id": _run_id(run.root / "wandb" / "id.txt"),
            "dir": str(run.root),
            "config": dict(config),
            "resume": "allow",
            "settings": settings,  # the command line and the machine's details stay in environment.json
        }
        upload = f"logging offline; upload later with `wandb sync {run.root}/wandb/*run*`"
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not self.wandb.login(prompt=False, verify=False):
            warn(f"Weights & Biases: not logged in (`wandb login`), {upload}")
            mode = "offline"
        try:
            self.session = self.wandb.init(**arguments, mode=mode)
        except self.wandb.errors.CommError as error:
            if mode is not None:
                raise
            warn(f"Weights & Biases: no connection ({_shown(error)}), {upload}")
            self.wandb.teardown()  # its background process still holds the run's id
            self.session = self.wandb.init(**arguments, mode="offline")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.session.log(dict(metrics), step=step)

    def close(self) -> None:
        self.session.finish()


class Trackio:
    """Logs to trackio's local database; look with `trackio show`. A resumed run continues under its own name."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.trackio = _library("trackio", "trackio")
        project = os.environ.get("TRACKIO_PROJECT", "relgrad")
        self.session = self.trackio.init(project=project, name=name, config=dict(config), resume="allow", embed=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.session.log({k: v for k, v in metrics.items() if math.isfinite(v)}, step=step)

    def close(self) -> None:
        self.session.finish()


class Trackers:
    """Passes every figure on to all trackers, in order. Itself a Tracker, and a context manager that closes them."""

    def __init__(self, trackers: Sequence[Tracker], warn: Warn = print) -> None:
        self.trackers = list(trackers)
        self.warn = warn

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises what `JsonLines` raises; any other tracker that raises is dropped with a warning."""
        for tracker in tuple(self.trackers):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                if isinstance(tracker, JsonLines):
                    raise
                self.trackers.remove(tracker)
                self.warn(f"{type(tracker).__name__} stopped at step {step} ({_shown(error)}); metrics.jsonl goes on")

    def close(self) -> None:
        for tracker in self.trackers:
            try:
                tracker.close()
            except Exception as error:
                self.warn(f"{type(tracker).__name__} did not close ({_shown(error)})")

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_trackers(
    names: Sequence[str],
    run: RunDir,
    *,
    title: str,
    config: Mapping[str, Any],
    first_step: int = 0,
    warn: Warn = print,
) -> Trackers:
    """`JsonLines` and the trackers a recipe names ("tensorboard", "wandb", "trackio").

    `title` is the run's name on a dashboard, `config` the resolved recipe shown beside it, its secrets left out.
    Raises RelgradError for an unknown name and, with the install line, for a library that is missing.
    """
    config = hide_in(without_secrets(config))
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run, first_step),
        "wandb": lambda: WeightsAndBiases(run, title, config, warn),
        "trackio": lambda: Trackio(title, config),
    }
    for name in names:
        if name not in makers:
            raise RelgradError(f"trackers: unknown tracker {name!r}. Known: {', '.join(makers)}")
    return Trackers([JsonLines(run), *(makers[name]() for name in names)], warn)


def _library(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise RelgradError(
            f"trackers: {module!r} is not installed; run `pip install 'relgrad[{extra}]'` or take it out of `trackers`"
        ) from None


def _shown(error: Exception) -> str:
    """What a library says of its failure, which may quote the key it was given."""
    return hide_known(repr(error))


def _run_id(path: Path) -> str:
    """The id kept in `path`; a new one is made where there is none, and disappears with the run folder."""
    if not path.exists():
        write_atomic(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8").strip()
