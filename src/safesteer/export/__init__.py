"""Exports of a run for other tools, each verified by reading it back before it is kept."""
