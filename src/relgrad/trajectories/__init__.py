"""What policies that write in several steps share.

states.py         a trajectory kept compactly: its start and its jumps
trained_steps.py  which of its steps are trained
plan.py           which decisions are scored together
film.py           what happened on the way, step by step, as plain data
"""
