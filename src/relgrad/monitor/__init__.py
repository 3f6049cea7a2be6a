"""What people see of a run; files in, words and pictures out. Imports no torch.

console.py    the live display
intervals.py  intervals in words
animate.py    a text coming about, played in the terminal
diagnose/     named warnings
model_card.py a run in words for the hub
report/       one HTML page per run
"""
