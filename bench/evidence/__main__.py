"""Run one of the evidence scripts: `python -m bench.evidence COMMAND`."""

from bench.command_line import run_package

if __name__ == "__main__":
    run_package("bench.evidence", ("benchmarks", "unseen", "solutions", "probe", "gate"))
