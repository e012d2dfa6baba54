"""Weights with a hole, a NaN or a wrong shape, wherever a model's weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.hostile_cases.case import Case, demand, stops, works
from bench.hostile_cases.room import (
    MODEL_COMMANDS,
    SHORT,
    Edit,
    Room,
    Tensors,
    completions,
    cut,
    delete,
    empty,
    file_edited,
    garbage,
    json_edited,
    product,
    replaced,
    tensors_edited,
    words,
)

KIND = "weights"
ONE = "model.layers.1.mlp.up_proj.weight"


def without(part: str) -> Edit:
    """Every tensor but those whose name holds `part`."""
    return tensors_edited(lambda t: {n: v for n, v in t.items() if part not in n})


def every_second(tensors: Tensors) -> Tensors:
    """As a download that lost a shard."""
    return {name: tensors[name] for name in sorted(tensors)[::2]}


def with_value(name: str, value: float) -> Edit:
    """One number of one tensor."""

    def poison(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[-1] = value
        return tensors

    return tensors_edited(poison)


def shaped(name: str, change: Any) -> Edit:
    """One tensor of another shape."""
    return tensors_edited(lambda t: {**t, name: change(t[name])})


def sharded(missing: bool) -> Edit:
    """A model in shards, one of them missing or not."""

    def change(folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="60KB")
        if missing:
            sorted(folder.glob("model-*.safetensors"))[1].unlink()

    return change


def pickled(folder: Path) -> None:
    """Only a pickle, which is never loaded."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


# {fault: (edit of the folder, what the error names)}
FAULTS: dict[str, tuple[Edit, str]] = {
    "one tensor missing": (without(ONE), r"layers\.1\.mlp\.up_proj"),
    "half of the tensors missing": (tensors_edited(every_second), r"miss|tensor|weight"),
    "output matrix missing": (without("lm_head"), "lm_head"),
    "embedding missing": (without("embed_tokens"), "embed_tokens"),
    "last norm missing": (without("model.norm"), r"model\.norm"),
    "all tensors renamed": (
        tensors_edited(lambda t: {f"x.{n}": v for n, v in t.items()}),
        "tensor|weight",
    ),
    "config.json with two blocks more": (
        json_edited("config.json", num_hidden_layers=6),
        r"layers\.4",
    ),
    "config.json with two blocks less": (
        json_edited("config.json", num_hidden_layers=2),
        r"layers\.[23]|layers \[1\]",
    ),
    "config.json of GPT-NeoX": (json_edited("config.json", model_type="gpt_neox"), "model"),
    "config.json of BERT": (json_edited("config.json", model_type="bert"), "model"),
    "a NaN": (with_value(ONE, float("nan")), r"layers\.1\.mlp\.up_proj"),
    "an infinity": (with_value("model.embed_tokens.weight", float("inf")), "embed_tokens"),
    "minus infinity in the output matrix": (with_value("lm_head.weight", -float("inf")), "lm_head"),
    "a tensor cut": (shaped(ONE, lambda t: t[:-1]), r"layers\.1\.mlp\.up_proj|shape|size"),
    "a tensor turned": (shaped(ONE, lambda t: t.T), r"layers\.1\.mlp\.up_proj|shape|size"),
    "the file cut": (file_edited("model.safetensors", cut), "model"),
    "the file empty": (file_edited("model.safetensors", empty), "model"),
    "the file is no safetensors": (file_edited("model.safetensors", garbage), "model"),
    "no weights": (file_edited("model.safetensors", delete), "safetensors"),
    "a shard missing": (sharded(True), "model"),
    "pickled weights only": (pickled, "safetensors"),
}
ADAPTER_FAULTS: dict[str, tuple[Edit, str]] = {
    "a block missing": (without("layers.1"), r"layers\.1"),
    "half of the tensors missing": (tensors_edited(every_second), "adapter"),
    "a block that the base lacks": (
        tensors_edited(
            lambda t: {**t, "base_model.model.model.layers.9.x.lora_A.weight": torch.ones(2, 2)}
        ),
        r"layers\.9",
    ),
    "infinities": (tensors_edited(lambda t: {n: v * float("inf") for n, v in t.items()}), "layers"),
    "the file cut": (file_edited("adapter_model.safetensors", cut), "adapter"),
    "the file empty": (file_edited("adapter_model.safetensors", empty), "adapter"),
    "no weights": (file_edited("adapter_model.safetensors", delete), "adapter_model"),
    "pickled weights only": (
        lambda path: (path / "adapter_model.safetensors").rename(path / "adapter_model.bin"),
        "safetensors",
    ),
    "another rank": (json_edited("adapter_config.json", r=3), "adapter"),
    "adapter_config.json cut": (file_edited("adapter_config.json", cut), "adapter_config"),
    "adapter_config.json is a list": (
        file_edited("adapter_config.json", replaced("[]")),
        "adapter_config",
    ),
    "its base is missing": (
        json_edited("adapter_config.json", base_model_name_or_path="/nowhere/base"),
        "/nowhere/base",
    ),
    "its base is itself": (
        lambda path: json_edited("adapter_config.json", base_model_name_or_path=str(path))(path),
        "adapter",
    ),
}


def gguf_without_a_tensor(path: Path) -> None:
    """The entry of one tensor renamed in place."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))


def gguf_with_a_nan(path: Path) -> None:
    """The last numbers of the file: part of its last tensor."""
    import numpy as np

    data = bytearray(path.read_bytes())
    data[-4096:] = np.full(1024, np.nan, np.float32).tobytes()
    path.write_bytes(data)


GGUF_FAULTS: dict[str, tuple[Edit, str]] = {
    "cut": (cut, r"model\.gguf"),
    "empty": (empty, r"model\.gguf"),
    "no GGUF": (garbage, r"model\.gguf"),
    "a header alone": (lambda path: path.write_bytes(b"GGUF" + bytes(20)), r"model\.gguf"),
    "a tensor missing": (gguf_without_a_tensor, r"model\.gguf"),
    "a NaN": (gguf_with_a_nan, r"model\.gguf|NaN"),
}
PLACES = {name: MODEL_COMMANDS[name] for name in ("doctor", "direction", "eval", "generate")}
RIGHT: dict[str, Edit] = {
    "the output matrix is the embedding": lambda path: (
        json_edited("config.json", tie_word_embeddings=True)(path),
        tensors_edited(lambda t: {**t, "model.embed_tokens.weight": t["lm_head.weight"].clone()})(
            path
        ),
        without("lm_head")(path),
    ),
    "in shards": sharded(False),
    "a head for speculative decoding besides": tensors_edited(
        lambda t: {**t, "mtp_head.weight": torch.ones(2, 2)}
    ),
}


def _refused(edit: Edit, names: str, target: str, command: list[str], room: Room) -> None:
    edit(room / target)
    stops(room, *words(command, target), names=names, stdin=b"Hello\n")


def _guard(edit: Edit, names: str, room: Room) -> None:
    make_guard(room / "guard")
    edit(room / "guard")
    judge = f"--judges=llama-guard-3-1b={room / 'guard'}"
    stops(room, *MODEL_COMMANDS["eval"][:1], "model", "-c", "small.yaml", judge, names=names)


def make_guard(folder: Path, **changes: Any) -> None:
    """A guard model of random weights, which says nothing that can be read."""
    import tiny

    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer, seed=3, max_position_embeddings=4096, **changes).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def _loads(edit: Edit, same: bool, room: Room) -> None:
    edit(room / "model")
    works(
        room,
        *words(MODEL_COMMANDS["generate"]),
        *SHORT,
        may_write=r"^answers\.jsonl$",
    )
    if same:
        demand(
            completions(room / "answers.jsonl") == completions(room / "greedy.jsonl"),
            "other answers than those of the same weights in one file",
            silent=True,
        )


def cases() -> Iterator[Case]:
    """Every fault, at each place where weights are read."""
    for name, (fault, command) in product(FAULTS, MODEL_COMMANDS):
        yield Case(KIND, f"model: {name}", partial(_refused, *fault, "model", command))
    for name, (fault, command) in product(ADAPTER_FAULTS, PLACES):
        yield Case(KIND, f"adapter: {name}", partial(_refused, *fault, "adapter", command))
    for name, (fault, command) in product(GGUF_FAULTS, PLACES):
        yield Case(KIND, f"GGUF: {name}", partial(_refused, *fault, "model.gguf", command))
    for name in (
        "one tensor missing",
        "a NaN",
        "the file cut",
        "all tensors renamed",
        "no weights",
    ):
        edit, names = FAULTS[name]
        yield Case(KIND, f"guard: {name}", partial(_guard, edit, f"guard.*({names}|file)"))
    for name, edit in RIGHT.items():
        yield Case(KIND, f"right: {name}", partial(_loads, edit, not name.startswith("the output")))
