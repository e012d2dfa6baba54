"""A run's result for other tools, each export proven by reading it back before it is kept."""
