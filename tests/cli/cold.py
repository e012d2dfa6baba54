"""The command with rollouts so cold that they are greedy, which no setting makes them."""

from __future__ import annotations

from safesteer.cli.main import program
from safesteer.cli.silence import silence_libraries

silence_libraries(debug=False)
from safesteer.distill import config  # noqa: E402

config.ROLLOUT_TEMPERATURE = 0.0001

if __name__ == "__main__":
    program()
