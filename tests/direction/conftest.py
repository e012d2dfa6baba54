"""Fixtures: a tiny model of each architecture."""

from architectures import model, unusual  # noqa: F401
