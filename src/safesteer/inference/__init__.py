"""Answers of the base, the teacher and the aligned model."""
