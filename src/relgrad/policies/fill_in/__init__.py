"""Masked text, filled in at once; one decision is one masked position.

settings.py  what a recipe may say
build.py     from settings and folders to a policy
policy.py    sampling, scoring, supervised loss, weights
filling.py   how a position is filled: drawn, and described to an estimator
denoise.py   writing in several steps
truth.py     a filled-in text beside what was hidden
options.py   its options of `relgrad sample`, and the figures that a console shows of its steps
supervised/  supervised losses
size.py      how much of a machine it takes, by arithmetic
toy.py       tiny instances for the contract tests
"""

from relgrad.policies.fill_in.build import build, settled
from relgrad.policies.fill_in.options import SAMPLE_OPTIONS
from relgrad.policies.fill_in.policy import FillInPolicy
from relgrad.policies.fill_in.settings import Settings
from relgrad.policies.fill_in.size import lengths, size
from relgrad.policies.fill_in.toy import toys

__all__ = ["SAMPLE_OPTIONS", "FillInPolicy", "Settings", "build", "lengths", "settled", "size", "toys"]
