"""Predicted memory of each stage, computed from a model's shape and the settings."""
