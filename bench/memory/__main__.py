"""Run one of the memory scripts: `python -m bench.memory COMMAND`."""

from bench.command_line import run_package

if __name__ == "__main__":
    run_package("bench.memory", ("prediction", "gpus"))
