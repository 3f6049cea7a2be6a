"""Networks that say what stands at masked positions, all behind one interface.

interface.py      what a policy asks of them
diffusion_gpt.py  the diffusion GPT
family.py         what one family of hub folders does differently from another
families/         the families: LLaDA, Dream, SDAR, LLaDA 2, causal models made bidirectional
load.py           opening a folder or hub name: its family, whose code runs it, its mask
network.py        a model of transformers, or of a folder's own code, as a masked network
attention.py      attention to both sides in transformers' language models
probe.py          whether a model of transformers really looks to both sides
block_cache.py    keys and values of finished blocks
saved.py          folders it is saved in, adapters
names.py          names of tensors in a family's own code and in transformers
shift_check.py    whether outputs stand where the shift says
tiny/             a tiny network of every family
"""
