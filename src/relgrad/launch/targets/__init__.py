"""Where runs can be started, a file a target: each offers TARGET (launch/target.py).

local.py     this machine, in the background
slurm.py     a Slurm cluster, by sbatch
ray.py       a Ray cluster, by its Jobs API
anyscale.py  Anyscale, by its SDK
"""
