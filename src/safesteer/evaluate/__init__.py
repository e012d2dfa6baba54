"""Judges, rates, intervals and drift."""
