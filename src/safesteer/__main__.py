"""``python -m safesteer``."""

from safesteer.cli.main import program

program()
