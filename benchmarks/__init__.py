"""Measurements of relgrad against TRL's GRPOTrainer and, of the fill-in policy, against copying every prompt; of
the flow policy, against going step by step.

`python -m benchmarks.run a|b|c|d|fill|flow|all [--quick]`; `python -m benchmarks.suite`, the evaluation suite on stored generations
"""
