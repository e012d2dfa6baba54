"""Time and memory of the parts of a run, against plain implementations of the same.

    python -m bench.speed COMMAND [OPTIONS]

Each command prints Markdown tables, which docs/performance.md and docs/devices.md show.
"""
