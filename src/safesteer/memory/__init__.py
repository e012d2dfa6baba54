"""How much memory each stage takes, by arithmetic alone: a model's shape, settings, bytes."""
