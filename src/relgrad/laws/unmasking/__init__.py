"""Laws of one step of masked diffusion: which masked positions are revealed, and what they become. Sample or score. Pure.

interface.py      what a step is, what it led to, and what every law can do
tokens.py         what a position becomes: softmax, temperature, top-p
fixed_order.py    positions in an order that the network does not decide: random, or left to right
plackett_luce.py  positions drawn by how sure the network is there, whatever the token: Gumbel top-k
low_confidence.py every position drafts, the most confident drafts stay
threshold.py      every position drafts, all confident enough stay, or else the most confident
confidence.py     what these two share: how sure a draft is, and how likely the others fall short of it
ancestral.py      every position by itself, with a chance that the schedule gives (MDLM)
remask.py         all are filled in, and some are masked again, also of what stood there before
remask_doubtful.py the same, and of the drafts the least confident are masked again
"""
