"""relgrad: GRPO for every kind of text generator, with likelihoods you can trust.

    import relgrad

    run = relgrad.train("Qwen/Qwen3-0.6B", rows, [reward], name="mine", grpo={"steps": 100})

`import relgrad` stays light: it pulls in neither torch nor transformers nor a tracker.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relgrad.python.run import Run
    from relgrad.python.train import train

__version__ = "0.1.0"
__all__ = ["Run", "train"]


def __getattr__(name: str) -> Any:
    """Functions of the front door, imported when they are used first."""
    if name not in __all__:
        raise AttributeError(f"module 'relgrad' has no attribute {name!r}")
    from relgrad.python import run, train

    return {"Run": run.Run, "train": train.train}[name]
