"""Search for workflows: a tree of edits, grown by execution within a budget; a source of experience.

settings.py      what a recipe says of a search
budget.py        hard limits: the worst case is reserved before each call
journal.py       every call in a file, so that a killed search goes on and pays for nothing twice
tree.py          workflows and what is known of them: visits, values, priors, trials
selection.py     which workflow is edited next: PUCT, and AFlow's mixed soft rule
proposals.py     what becomes of it: an edit of the grammar, or a language model's idea
prior.py         which edits are likely to help, learnt from earlier searches
trials.py        executions of a workflow, repeated until their interval is clear
loop.py          the search itself
decisions.py     tree search over a policy's decisions, where states can be computed: PUCT with its prior
records.py       trees and trajectories as plain data
"""
