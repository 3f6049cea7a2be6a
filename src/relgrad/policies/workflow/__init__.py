"""List programs, written operator by operator; one decision is one operator.

settings.py  what a recipe may say
policy.py    sampling, scoring, what a search asks, weights
toy.py       tiny instances for the contract tests
"""

from relgrad.policies.workflow.policy import WorkflowPolicy, build
from relgrad.policies.workflow.settings import Settings
from relgrad.policies.workflow.toy import toys

__all__ = ["Settings", "WorkflowPolicy", "build", "toys"]
