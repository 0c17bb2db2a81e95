"""`python -m infoprune`, which torchrun needs."""

from infoprune.cli import main

main()
