"""Measurements of relgrad against TRL's GRPOTrainer and, of the fill-in policy, against copying every prompt.

`python -m benchmarks.run a|b|c|d|fill|all [--quick]`
"""
