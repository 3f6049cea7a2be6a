"""The processes that run one job together, and the few things they tell each other.

Every process holds the whole model and takes a share of the rows; small tables (rewards, log-probabilities) are gathered, so that
every process comes to the same verdicts by itself, and gradients are added. Started by torchrun, which names rank, size and
meeting place in environment variables; without them a job is alone.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from relgrad.core.errors import RelgradError

Value = TypeVar("Value")
BUCKET = 2**23
"""Entries of gradients that are added in one message."""


class Lost(RelgradError):
    """Another process of the job is gone, so this one ends too. Whoever started them knows which, and why."""


class Elsewhere(RelgradError):
    """What another process of the job raised. That one says it too."""


@contextmanager
def talking() -> Iterator[None]:
    """Around every message between processes: what the library raises when one of them is gone becomes Lost."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process of this job ended") from error


class Ranks:
    """Process number `rank` of `size`. Every method must be called by all of them, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def share(self, count: int) -> range:
        """Which of `count` items are this process's: neighbours, as many for each as for any other, give or take one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, in the order of ranks. The process's own is the object itself."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        with talking():
            torch.distributed.all_gather_object(values, value)
        values[self.rank] = value
        return values

    def same(self, value: Value) -> Value:
        """The first process's value."""
        if self.alone:
            return value
        box = [value]
        with talking():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, entry by entry, in place. Equal to the last bit in all processes."""
        if not self.alone:
            with talking():
                torch.distributed.all_reduce(tensor)
        return tensor

    def numbers(self, *own: float) -> list[tuple[float, ...]]:
        """Everybody's numbers, in the order of ranks: `gather` for as many numbers of each, in one small message."""
        table = torch.zeros(self.size, len(own), dtype=torch.float64)
        table[self.rank] = torch.tensor(own, dtype=torch.float64)
        return [tuple(row) for row in self.sum(table).tolist()]

    def wait(self) -> None:
        """Until everybody is here."""
        if not self.alone:
            with talking():
                torch.distributed.barrier()

    def together(self, work: Callable[[], Value]) -> Value:
        """The result of this process's own work, once everybody's has succeeded; raises as `collect`."""
        results: list[Value] = []
        self.collect(lambda: results.append(work()))
        return results[0]

    def collect(self, work: Callable[[], Value]) -> list[Value]:
        """Everybody's result, in the order of ranks; the process's own is the object itself.

        What one process raises, all raise, so that nobody waits for it for ever: itself the exception, the others Elsewhere with
        its message.
        """
        if self.alone:
            return [work()]
        problem: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Lost:
            raise
        except Exception as error:
            problem = error
        everybodys = self.gather((None if problem is None else f"{_kind(problem)}{problem}", result))
        if problem is not None:
            raise problem
        for rank, (message, _) in enumerate(everybodys):
            if message is not None:
                raise Elsewhere(f"process {rank + 1} of {self.size}: {message}")
        return [value for _, value in everybodys]

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add everybody's `.grad` of every parameter; a process where there is none counts as zeros.

        A parameter without a gradient anywhere is left without one.
        """
        if self.alone:
            return
        bucket: list[torch.nn.Parameter] = []
        entries = 0
        for parameter in parameters:
            if bucket and (entries + parameter.numel() > BUCKET or parameter.dtype != bucket[0].dtype):
                self._add(bucket)
                bucket, entries = [], 0
            bucket.append(parameter)
            entries += parameter.numel()
        if bucket:
            self._add(bucket)

    def _add(self, bucket: list[torch.nn.Parameter]) -> None:
        """One message: for every parameter whether there is a gradient, then the gradients one after the other."""
        present_P = torch.tensor([p.grad is not None for p in bucket]).to(bucket[0])
        flat = torch.cat(
            [present_P, *(torch.zeros_like(p.flatten()) if p.grad is None else p.grad.flatten() for p in bucket)]
        )
        self.sum(flat)
        present_P, *gradients = flat.split([len(bucket), *(p.numel() for p in bucket)])
        for parameter, count, gradient in zip(bucket, present_P.tolist(), gradients, strict=True):
            parameter.grad = gradient.view_as(parameter) if count else None


ALONE = Ranks()


def _kind(problem: Exception) -> str:
    return "" if isinstance(problem, RelgradError) else f"{type(problem).__name__}: "


def start() -> Ranks:
    """The ranks of this job: those that torchrun names, met over gloo and, where there is a GPU for each, nccl; else alone.

    Raises RelgradError where there are more processes on this machine than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not torch.distributed.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            local, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
            if local_size > torch.cuda.device_count():
                raise RelgradError(
                    f"{local_size} processes on a machine with {torch.cuda.device_count()} GPUs: start at most one process for "
                    "a GPU, or hide the GPUs (CUDA_VISIBLE_DEVICES='') to run on the CPU"
                )
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(backend)
        atexit.register(_leave)
    return Ranks(torch.distributed.get_rank(), size)


def _leave() -> None:
    """Leave the other processes before the interpreter ends: the threads of a process that did not would abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
