"""`python -m relgrad`: the command line."""

from relgrad.commands.cli import main

main()
