"""Byte-level BPE tokenizers and their chat templates as metadata of a GGUF file.

llama.cpp splits text before BPE by built-in rules, which a file only names. A tokenizer whose split
is not recognized is rejected.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import gguf

from safesteer.errors import InputError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of splits, by the tokenizer's steps before BPE.
_SPLITS = {
    (_WORDS + r"\p{N}{1,3}" + _REST, "bytes"): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST, "bytes"): "qwen2",
    ("GPT-2's words and bytes",): "gpt-2",
    ("single digits", "GPT-2's words and bytes"): "smollm",
}


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, rows: int, split: str) -> None:
    """Add vocabulary, merges, special tokens and chat template.

    `split` is from `split_name`. Of the `rows` of the output matrix, ids without a token get a
    placeholder.
    """
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds, texts = [], []
    for index in range(rows):
        if index not in words:
            kind = gguf.TokenType.UNUSED
        elif index in added:
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        else:
            kind = gguf.TokenType.NORMAL
        kinds.append(kind)
        texts.append(words.get(index, f"[PAD{index}]"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(Path(folder), load_merges=True, n_vocab=rows)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    special.add_special_token = {
        "bos": ids[: -len(plain)] == [tokenizer.bos_token_id],
        "eos": ids[-1] == tokenizer.eos_token_id,
    }
    special.chat_template = tokenizer.chat_template
    special.add_to_gguf(writer, quiet=True)


def split_name(tokenizer: Any, base: Path | None = None) -> str:
    """llama.cpp's name of a tokenizer's split before BPE, or the one in its GGUF file `base`.

    Raises InputError for an unknown split.
    """
    if base is not None:
        fields = gguf.GGUFReader(base).fields
        if "tokenizer.ggml.pre" in fields and _value(fields, "tokenizer.ggml.model") == "gpt2":
            return _value(fields, "tokenizer.ggml.pre")
    else:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        state = json.loads(backend.to_str()) if backend is not None else {}
        name = _SPLITS.get(tuple(_steps(state)))
        if name is not None:
            return name
    raise InputError(
        "cannot write this tokenizer to a GGUF file: it is not of a known byte-level kind (GPT-2,"
        " SmolLM, Llama 3, Qwen 2 and 3). Try: --format merged, then llama.cpp's"
        " convert_hf_to_gguf.py"
    )


def _steps(state: dict[str, Any]) -> list[str]:
    """A tokenizer's steps before BPE, as in `_SPLITS`; [] for other tokenizers."""
    if state.get("model", {}).get("type") != "BPE" or state.get("pre_tokenizer") is None:
        return []
    before = state["pre_tokenizer"]
    found = []
    for step in before.get("pretokenizers", [before]):
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            found.append(str(step["pattern"].get("Regex")))
        elif kind == "Digits" and step["individual_digits"]:
            found.append("single digits")
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            found.append("GPT-2's words and bytes" if step["use_regex"] else "bytes")
        else:
            found.append(kind)
    return found


def _value(fields: dict[str, Any], key: str) -> str:
    return str(fields[key].contents())
