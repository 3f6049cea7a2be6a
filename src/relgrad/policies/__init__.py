"""Text generators, one folder a kind: a network, its law, an estimator and a keeper of weights, put together.

autoregressive/  causal language models; one decision is one token
fill_in/         masked text, filled in at once; one decision is one masked position
flow/            discrete flow matching; one decision is one step
refusion/        slots in any order, left to right inside; one decision is one planning step
unmasking/       masked diffusion over several steps; one decision is one step
workflow/        list programs; one decision is one operator
"""
