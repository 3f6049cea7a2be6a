"""How others do it: kept to be compared with, never a default.

k1_loss.py         the loss of the original diffusion-GPT trainer
left_to_right.py   REINFORCE on left-to-right log-probabilities, ReFusion's first trainer
denoising_flow.py  advantage times denoising loss, FS-DFM's first trainer
"""
