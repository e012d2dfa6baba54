"""Evaluation: refusal and attack success rates, capabilities, drift, and their intervals."""
