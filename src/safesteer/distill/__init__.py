"""Distilling the safety teacher into the model on the safety tokens."""
