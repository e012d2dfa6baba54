"""Memory of a run: predicted peaks against measured ones, and the GPUs that a recipe fits on.

    python -m bench.memory COMMAND [OPTIONS]

Each command prints Markdown tables, which docs/performance.md shows.
"""
