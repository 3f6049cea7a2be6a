"""Networks that say what stands at masked positions, all behind one interface.

interface.py      what a policy asks of them
diffusion_gpt.py  the diffusion GPT
"""
