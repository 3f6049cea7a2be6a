"""Discrete flow matching; one decision is one step.

settings.py  what a recipe may say
policy.py    sampling, scoring, supervised loss, weights
steps.py     the steps: drawn, and described to an estimator
engine.py    its way through the network
symbols.py   what it writes in: ids, an end, a mask
open.py      from settings and folders to a policy's parts, and back
film.py      what happened on the way, step by step
options.py   its options of `relgrad sample`
supervised/  supervised losses
size.py      how much of a machine it takes, by arithmetic
toy.py       tiny instances for the contract tests
"""

from relgrad.policies.flow.open import settled
from relgrad.policies.flow.options import SAMPLE_OPTIONS
from relgrad.policies.flow.policy import FlowPolicy, build
from relgrad.policies.flow.settings import Settings
from relgrad.policies.flow.size import lengths, size
from relgrad.policies.flow.toy import toys

__all__ = ["SAMPLE_OPTIONS", "FlowPolicy", "Settings", "build", "lengths", "settled", "size", "toys"]
