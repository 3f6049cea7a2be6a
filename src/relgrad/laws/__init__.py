"""Laws: functions that sample a decision or score it. Pure: no models, randomness only from what is passed in.

categorical.py  softmax with temperature, top-k, top-p
tiled.py        the same behind a language-model head, tile by tile
plackett_luce.py  an ordered choice without replacement
precision.py    in float32 at least, whatever the precision of the network
schedule.py     schedulers of discrete flow matching
ctmc.py         one Euler step of it: three kernels, two sources
unmasking/      one step of masked diffusion: which positions are revealed, and what they become
"""
