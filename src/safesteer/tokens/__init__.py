"""The safety tokens: where teacher and model differ."""
