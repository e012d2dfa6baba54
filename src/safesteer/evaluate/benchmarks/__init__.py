"""Benchmarks: their table, their prompts, and capabilities measured by lm-eval."""

from safesteer.evaluate.benchmarks.entry import Benchmark
from safesteer.evaluate.benchmarks.sources import Item, Loaded, load_benchmarks
from safesteer.evaluate.benchmarks.table import BENCHMARKS, find_benchmark

__all__ = ["BENCHMARKS", "Benchmark", "Item", "Loaded", "find_benchmark", "load_benchmarks"]
