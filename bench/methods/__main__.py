"""Compare methods: `python -m bench.methods`."""

from bench.command_line import run_script

if __name__ == "__main__":
    run_script("bench.methods.sweep", called="bench.methods")
