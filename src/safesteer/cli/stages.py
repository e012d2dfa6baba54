"""``safesteer direction``, ``tokens`` and ``train``: a run up to one of its stages."""

from __future__ import annotations

from collections.abc import Callable

from safesteer.cli.options import Fresh, GivenSettings, OutputDir, Quiet, RunOrModel, with_settings


def _up_to(last: str, help_: str) -> Callable[..., None]:
    """The command that runs the stages up to `last`."""

    @with_settings
    def command(
        settings: GivenSettings,
        target: RunOrModel,
        output_dir: OutputDir = None,
        resume: Fresh = True,
        quiet: Quiet = False,
    ) -> None:
        from safesteer.cli.work import work

        work(target, settings, output_dir, last=last, fresh=not resume, quiet=quiet)

    command.__doc__ = help_
    return command


direction = _up_to("direction", "Find the refusal direction: the first stage of a run.")
tokens = _up_to("tokens", "Choose the safety tokens, after the direction if it is missing.")
train = _up_to("train", "Train the aligned model, after the stages that are missing.")
