"""Discrete flow matching; one decision is one step.

policy.py    settings, sampling, scoring
engine.py    its way through the network
symbols.py   what it writes in: ids, an end, a mask
open.py      from settings and folders to a policy's parts, and back
film.py      what happened on the way, step by step
supervised/  supervised losses
toy.py      tiny instances for the contract tests
"""

from relgrad.policies.flow.policy import Settings, build
from relgrad.policies.flow.toy import toys

__all__ = ["Settings", "build", "toys"]
