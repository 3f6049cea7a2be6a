"""A task as a search walks through it, operator by operator; implements protocols.DecisionProblem."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.environments.lists.examples import Example
from relgrad.environments.lists.operators import APPLY, Values

State = tuple[Values, ...]


class ListProblem:
    """Make the visible examples' results of what is given, in at most `most_steps` operators.

    A state is what the given lists have become. Hidden examples are not known here.
    """

    actions = len(APPLY)

    def __init__(self, examples: Sequence[Example], most_steps: int) -> None:
        self.start: State = tuple(example.given for example in examples)
        self.goal: State = tuple(example.result for example in examples)
        self.most_steps = most_steps
        self._after: dict[tuple[State, int], State] = {}

    def apply(self, state: State, action: int) -> State:
        """What an operator makes of a state; kept, since samples of a group and searches come by again."""
        key = (state, action)
        after = self._after.get(key)
        if after is None:
            apply = APPLY[action]
            after = self._after[key] = tuple([apply(values) for values in state])
        return after

    def solved(self, state: State) -> bool:
        """Whether every visible example's result is there."""
        return state == self.goal
