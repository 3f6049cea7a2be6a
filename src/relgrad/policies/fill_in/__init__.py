"""Masked text, filled in at once; one decision is one masked position.

policy.py    settings, sampling, scoring
denoise.py   writing in several steps
supervised/  supervised losses
toy.py      tiny instances for the contract tests
"""

from relgrad.policies.fill_in.policy import FIGURES, Settings, build
from relgrad.policies.fill_in.toy import toys

__all__ = ["FIGURES", "Settings", "build", "toys"]
