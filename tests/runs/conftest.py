from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safesteer.config.settings import Settings
from safesteer.runs.directory import RunDirectory

MODEL = {"id": "tiny", "revision": None, "sha256": "1" * 64}

OpenRun = Callable[..., RunDirectory]


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[OpenRun]:
    """Opens tmp_path/run, closing the run it opened before."""
    opened: list[RunDirectory] = []

    def open_again(fresh: bool = False, **model: str) -> RunDirectory:
        for run in opened:
            run.close()
        opened.append(
            RunDirectory.open(
                tmp_path / "run", settings=Settings(), model={**MODEL, **model}, fresh=fresh
            )
        )
        return opened[-1]

    yield open_again
    for run in opened:
        run.close()
