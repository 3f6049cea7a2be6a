"""Generated code, executed where it can do no harm: in bubblewrap, as nobody, without network, keys or files.

limits.py        what a program may use, and whether it may run where nothing contains it
outcome.py       what came of it: a value, or a named error
values.py        plain data as JSON, and back (also inside)
guest.py         what runs inside: it executes the program and reports
system_calls.py  which system calls are left
bubblewrap.py    the walls, as a command line
machine.py       what this machine can contain, tried out
cores.py         how many programs may run side by side
launch.py        a guest's process, from its start to its end
channel.py       messages from the guest, none of which is trusted
run.py           one program, or many side by side

Each knows only what stands above it. What is contained, and what is not: docs/sandbox.md.
"""
