"""Benchmarks: their table, their prompts, and capabilities measured by lm-eval."""

from safesteer.evaluate.benchmarks.entry import Benchmark
from safesteer.evaluate.benchmarks.sources import Item, Loaded, load_benchmarks
from safesteer.evaluate.benchmarks.table import BENCHMARKS, benchmark_names, find_benchmark

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Item",
    "Loaded",
    "benchmark_names",
    "find_benchmark",
    "load_benchmarks",
]
