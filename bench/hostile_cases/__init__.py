"""The cases of `bench.hostile`, one module per kind."""
