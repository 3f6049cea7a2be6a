"""Neural networks, one folder a family, and what they share.

causal/         Hugging Face causal language models
diffusion_gpt/  the diffusion GPT: language model, token classifier, sequence scorer
example_set/    a set of examples, and which decision is next
fsdfm/          FS-DFM's diffusion transformer
masked/         networks that say what stands at masked positions, behind one interface
refusion/       ReFusion: slots in any order under causal attention
weights/        devices, frozen starts, averages, folders
"""
