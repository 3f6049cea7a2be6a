"""relgrad: GRPO for every kind of text generator, with likelihoods you can trust.

`import relgrad` stays light: it pulls in neither torch nor transformers nor a tracker.
"""

__version__ = "0.1.0"
