"""Which estimators a recipe can name, and the one that it names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from relgrad.core.settings import Strict
from relgrad.estimators.bounds import Bgpo, Spg
from relgrad.estimators.coupled import Coupled
from relgrad.estimators.elbo import Elbo
from relgrad.estimators.mean_field import MeanField
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.estimators.surrogate import Surrogate


class Trajectory(Strict):
    """The exact log-probability of every step (exact.py)."""

    kind: Literal["exact"] = "exact"


EstimatorSettings = Annotated[
    Trajectory | MeanField | Coupled | Elbo | Bgpo | Spg | MergedSteps, Field(discriminator="kind")
]
"""A recipe's `estimator` section."""


def surrogate_of(settings: EstimatorSettings) -> Surrogate | None:
    """The surrogate that is trained by; None where log-probabilities are exact."""
    return None if isinstance(settings, Trajectory) else Surrogate(settings)
