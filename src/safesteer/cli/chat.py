"""``safesteer chat``: a conversation with a run's base and aligned model, or with one model."""

from __future__ import annotations

import io
import sys

from safesteer.cli.options import (
    GivenSettings,
    MaxNewTokens,
    RunOrModel,
    Temperature,
    with_model_settings,
)


@with_model_settings
def chat(
    settings: GivenSettings,
    target: RunOrModel,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Chat with a run's base and aligned model side by side, or with one model.

    Every line is a turn. /reset starts a new conversation; /quit or Ctrl-D ends the chat.
    """
    from safesteer.cli.reporter import make_reporter
    from safesteer.cli.tables import side_by_side
    from safesteer.runs.target import find_target

    found = find_target(target, **settings.arguments())
    found.check_model()
    with make_reporter(quiet=False) as reporter:
        reporter.start(target)
        from safesteer.inference.conversation import Conversation
        from safesteer.models.generate import Decoding
        from safesteer.runs.artifacts import load_variants

        names = ["base", "aligned"] if found.is_run else ["base"]
        variants = load_variants(found, names, reporter)
        reporter.finish()
        decoding = Decoding(max_new_tokens, temperature)
        conversation = Conversation(variants, decoding, found.settings.seed)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        while True:
            if sys.stdin.isatty():
                reporter.console.print("you> ", end="", style="bold")
            line = sys.stdin.readline()
            text = line.strip()
            if not line or text == "/quit":
                break
            if text == "/reset":
                conversation.reset()
            elif text:
                if "\N{REPLACEMENT CHARACTER}" in text:
                    reporter.note("bytes that are not text were read as \N{REPLACEMENT CHARACTER}")
                for part in side_by_side(conversation.generate(text), reporter.console.is_terminal):
                    reporter.console.print(part, soft_wrap=not reporter.console.is_terminal)
                reporter.console.file.flush()
