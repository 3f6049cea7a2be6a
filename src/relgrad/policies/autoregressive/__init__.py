"""Causal language models; one decision is one token.

settings.py             what a recipe says
build.py                from settings and folders to a policy
adapter.py              which settings hold a bare PEFT adapter
policy.py               sampling, scoring, supervised loss
engine.py               what an engine is: draw completions, score them, plan the scoring
shared_engine.py        the one that computes a prompt once for its group
transformers_engine.py  the one for every other architecture
choose.py               which of them runs a model
served.py               completions that a server wrote
packed.py               rollouts as one flat row of tokens
size.py                 how much of a machine it takes, by arithmetic
toy.py                  tiny instances for the contract tests
"""

from relgrad.policies.autoregressive.adapter import adapter_settings
from relgrad.policies.autoregressive.build import build, settled
from relgrad.policies.autoregressive.policy import AutoregressivePolicy
from relgrad.policies.autoregressive.settings import Lora, Settings
from relgrad.policies.autoregressive.size import lengths, size
from relgrad.policies.autoregressive.toy import toys

__all__ = [
    "AutoregressivePolicy",
    "Lora",
    "Settings",
    "adapter_settings",
    "build",
    "lengths",
    "settled",
    "size",
    "toys",
]
