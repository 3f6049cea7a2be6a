"""Masked diffusion over several steps; one decision is one step.

settings.py    what a recipe may say
policy.py      sampling, scoring, supervised loss, weights
steps.py       the steps: drawn, and described to an estimator
schedule.py    blocks, and what a step has to reveal
drafts.py      what would be written at once, on the way
engine.py      its way through the network
rows.py        prompts, and the positions that are written
supports.py    the tokens that could be drawn, as a trace keeps them
symbols.py     what it writes in: ids, an end, a mask
parts.py       what a policy is made of
open.py        from settings and folders to a policy's parts, and back
surrogate_rollouts.py  finished texts made ready for a surrogate of their log-probability
published.py   the same for published models
tokens.py      a tokenizer as symbols
film.py        what happened on the way, step by step
options.py     its options of `relgrad sample`
supervised/    supervised losses
size.py        how much of a machine it takes, by arithmetic
toy.py         tiny instances for the contract tests
family_toys.py the same on networks of every family
"""

from relgrad.policies.unmasking.open import settled
from relgrad.policies.unmasking.options import SAMPLE_OPTIONS
from relgrad.policies.unmasking.policy import UnmaskingPolicy, build
from relgrad.policies.unmasking.settings import Settings
from relgrad.policies.unmasking.size import lengths, size
from relgrad.policies.unmasking.toy import toys

GOES_ON_FROM = ("fill_in",)
"""A generator of this kind holds the same network and vocabulary."""

__all__ = [
    "GOES_ON_FROM",
    "SAMPLE_OPTIONS",
    "Settings",
    "UnmaskingPolicy",
    "build",
    "lengths",
    "settled",
    "size",
    "toys",
]
