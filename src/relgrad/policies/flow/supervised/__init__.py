"""What discrete flow matching is trained with, one idea a file.

noise_path.py         noise: x_t between source and text, at the positions that are generated
cross_entropy.py      two losses of a position ...
generalised_kl.py     ... with one minimiser, the posterior p(x_1 | x_t)
flow_matching.py      the supervised loss
few_step.py           distillation of a network into one that takes large steps ...
half_steps.py, rk4.py ... whose teacher is one of these
"""
