"""Comparison of methods: one base, one set of prompts, one budget of steps and completions."""
