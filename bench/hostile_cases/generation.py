"""Keys of a model's generation_config.json: none changes what the tool generates, each is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.hostile_cases.case import Case, command, demand, works
from bench.hostile_cases.room import SAMPLED, SHORT, Room, completions, json_edited

KIND = "generation_config"
# Keys that change a text or the way to it.
CHANGING: dict[str, Any] = {
    "min_new_tokens": 8,
    "min_length": 60,
    "suppress_tokens": list(range(40, 200)),
    "begin_suppress_tokens": list(range(40, 200)),
    "bad_words_ids": [[token] for token in range(40, 200)],
    "sequence_bias": [[[token], -20.0] for token in range(40, 200)],
    "forced_bos_token_id": 70,
    "forced_eos_token_id": 70,
    "guidance_scale": 3.0,
    "exponential_decay_length_penalty": [1, 5.0],
    "max_time": 1e-6,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 20.0, "context_width": 1},
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "stop_strings": ["a", "e", " "],
    "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 3,
    "dola_layers": "high",
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.99,
    "typical_p": 0.01,
    "epsilon_cutoff": 0.9,
    "eta_cutoff": 0.9,
    "do_sample": True,
    "max_length": 2,
    "max_new_tokens": 2,
    "num_return_sequences": 2,
}
# Keys that change what `generate` returns, or how it computes.
OTHERS: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_hidden_states": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto", "nbits": 4},
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "token_healing": True,
    "assistant_confidence_threshold": 0.9,
    "is_assistant": True,
    "compile_config": {"mode": "default"},
    "unknown_key": 1,
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
KEPT = (
    *(
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        "min_new_tokens",
        "stop_strings",
    ),
    *("repetition_penalty", "temperature", "forced_eos_token_id"),
)


def _same(key: str, value: Any, mode: str, named: bool, room: Room) -> None:
    json_edited("generation_config.json", **{key: value})(room / "model")
    options = SAMPLED if mode == "sampled" else SHORT
    asked = ("--prompts", "harmful.jsonl", "--output", "answers.jsonl", *options)
    outcome = works(room, "generate", "model", *asked, may_write="^answers")
    found = completions(room / "answers.jsonl")
    demand(found == completions(room / f"{mode}.jsonl"), f"{key} changed the answers", silent=True)
    if named:
        count = outcome.said.count(key)
        demand(count == 1, f"{key} is named {count} times: {outcome.said!r:.300}")


def _exported(key: str, value: Any, room: Room) -> None:
    """The merged model's file is the user's."""
    json_edited("generation_config.json", **{key: value})(room / "model")
    made = command(room, "train", "model", "-c", "small.yaml", "-o", "new")
    demand(made.code == 0, made.err)
    works(room, "export", "new", "--format", "merged", "--output", "out", may_write="^out/")
    written = json.loads((room / "out" / "generation_config.json").read_text("utf-8"))
    demand(
        written.get(key) == value, f"the export has {key} = {written.get(key)!r:.60}", silent=True
    )


def _broken(text: str, room: Room) -> None:
    (room / "model" / "generation_config.json").write_text(text)
    outcome = command(
        room, *("generate", "model", "--prompts", "harmful.jsonl", "--output", "a.jsonl", *SHORT)
    )
    demand("Traceback" not in outcome.err, outcome.err[-300:])
    if outcome.code:
        demand("generation_config" in outcome.err, f"names no file: {outcome.err!r}")
        demand("Error" not in outcome.err, f"a Python name: {outcome.err!r}")


def cases() -> Iterator[Case]:
    """Every key, greedy and sampled; exports; files that are none."""
    for key, value in {**CHANGING, **OTHERS}.items():
        for mode in ("greedy", "sampled"):
            named = key in CHANGING and mode == "greedy"
            yield Case(KIND, f"{key} / {mode}", partial(_same, key, value, mode, named))
    for key in KEPT:
        yield Case(KIND, f"{key} / export merged", partial(_exported, key, CHANGING[key]))
    for name, text in {
        "empty": "",
        "a list": "[]",
        "cut": '{"eos_token_id": ',
        "a word as the end": '{"eos_token_id": "x"}',
        "an end that no token is": '{"eos_token_id": 99999}',
        "no end": '{"pad_token_id": 0}',
    }.items():
        yield Case(KIND, f"the file is {name}", partial(_broken, text))
