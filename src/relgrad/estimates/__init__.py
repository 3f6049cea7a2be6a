"""What a run will need before it is started: pure arithmetic, no torch and no weights.

transformer.py   a network's shape: parameters, operations, what is kept for a backward pass
policy_size.py   a policy's shape: its networks' weights, and how prompts and completions become positions
stage.py         a stage's memory and work, from its policy's size and its settings
"""
