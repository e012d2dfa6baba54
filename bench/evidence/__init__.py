"""Evidence on finished runs: benchmarks, reference solutions, and a linear probe with its gate.

    python -m bench.evidence COMMAND [OPTIONS]

Each command prints Markdown tables, which README and docs/results.md show.
"""
