"""Runs on disk: the run directory, its manifest and lock, stages that resume, and their outputs."""
