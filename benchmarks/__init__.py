"""Measurements of relgrad against TRL's GRPOTrainer: `python -m benchmarks.run a|b|c|d|all [--quick]`."""
