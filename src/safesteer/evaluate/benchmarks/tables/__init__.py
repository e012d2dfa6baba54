"""The entries of the benchmark table, one file per kind."""
