"""ReFusion: slots in any order, tokens from left to right inside them; one decision is one planning step.

settings.py    what a recipe may say
policy.py      sampling, scoring, supervised loss, weights
schedule.py    which slots a step may write, and how many
engine.py      writing: plan, first tokens, the rest of each slot, with a cache
steps.py       the steps, described to an estimator
film.py        what happened on the way, step by step
options.py     its options of `relgrad sample`
native.py      plan, verify, infill: how the original decodes
supervised.py  the supervised loss
open.py        from settings and folders to a policy's parts, and back
size.py        how much of a machine it takes, by arithmetic
toy.py         tiny instances for the contract tests
"""

from relgrad.policies.refusion.open import settled
from relgrad.policies.refusion.options import SAMPLE_OPTIONS
from relgrad.policies.refusion.policy import RefusionPolicy, build
from relgrad.policies.refusion.settings import Lora, Settings
from relgrad.policies.refusion.size import lengths, size
from relgrad.policies.refusion.toy import toys

__all__ = ["SAMPLE_OPTIONS", "Lora", "RefusionPolicy", "Settings", "build", "lengths", "settled", "size", "toys"]
