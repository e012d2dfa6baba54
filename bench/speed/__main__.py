"""Run one measurement of speed: `python -m bench.speed COMMAND`."""

from bench.command_line import run_package

if __name__ == "__main__":
    run_package(
        "bench.speed",
        (
            "direction",
            "lengths",
            "loss",
            "update",
            "profile",
            "compiled",
            "scaling",
            "processes",
            "hashes",
            "loading",
        ),
    )
