"""Causal language models; one decision is one token.

policy.py               settings, sampling, scoring
packed.py               rollouts to one flat row of tokens
transformers_engine.py  for models the shared-prompt engine does not run
toy.py                 tiny instances for the contract tests
"""

from relgrad.policies.autoregressive.policy import Settings, build
from relgrad.policies.autoregressive.toy import toys

__all__ = ["Settings", "build", "toys"]
