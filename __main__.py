"""`python -m nestegg`: the command line."""

from .cli import main

main()
