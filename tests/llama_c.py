"""llama.cpp's C interface, as exported by the package xllamacpp: a model with a control vector.

`xllamacpp` has no option for control vectors. This calls what ``llama-server --control-vector``
calls. (echo '[[1, 2, 3]]' | python tests/llama_c.py MODEL.gguf VECTOR.gguf)
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from ctypes import c_char_p, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path

import gguf
import numpy as np
import xllamacpp


class Parameters(ctypes.Structure):
    """Room for llama.cpp's structures of parameters, of which only the first numbers are known."""

    _fields_ = (("words", ctypes.c_uint32 * 512),)


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (("n_tokens", c_int32), ("pointers", c_void_p * 6))


def load() -> ctypes.CDLL:
    """The library, with the types of the functions used here."""
    lib = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    for name, result, arguments in (
        ("model_default_params", Parameters, []),
        ("context_default_params", Parameters, []),
        ("model_load_from_file", c_void_p, [c_char_p, Parameters]),
        ("init_from_model", c_void_p, [c_void_p, Parameters]),
        ("set_adapter_cvec", c_int32, [c_void_p, c_void_p, c_size_t, *[c_int32] * 3]),
        ("model_n_embd", c_int32, [c_void_p]),
        ("model_n_layer", c_int32, [c_void_p]),
        ("model_get_vocab", c_void_p, [c_void_p]),
        ("vocab_n_tokens", c_int32, [c_void_p]),
        ("batch_get_one", Batch, [c_void_p, c_int32]),
        ("decode", c_int32, [c_void_p, Batch]),
        ("get_logits_ith", ctypes.POINTER(c_float), [c_void_p, c_int32]),
        ("get_memory", c_void_p, [c_void_p]),
        ("memory_clear", None, [c_void_p, ctypes.c_bool]),
    ):
        function = getattr(lib, f"llama_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(lib, name, function)
    return lib


def laid_out(file: str, width: int) -> np.ndarray:
    """The directions of a file as llama.cpp's own loader lays them out: blocks 1, 2, ..."""
    directions = {t.name: t.data for t in gguf.GGUFReader(file).tensors}
    blocks = {int(name.removeprefix("direction.")): data for name, data in directions.items()}
    assert min(blocks) >= 1  # its loader refuses block 0
    values = np.zeros((max(blocks), width), np.float32)
    for block, data in blocks.items():
        values[block - 1] = data
    return values


def main() -> None:
    """Read lists of token ids from stdin; print the logits after each."""
    model_file, vector_file = sys.argv[1:]
    lib = load()
    lib.llama_backend_init()
    model = lib.model_load_from_file(model_file.encode(), lib.model_default_params())
    settings = lib.context_default_params()
    settings.words[0] = settings.words[1] = settings.words[2] = 512  # context and batches
    context = lib.init_from_model(model, settings)
    values = laid_out(vector_file, lib.model_n_embd(model))
    layers = lib.model_n_layer(model)
    assert (
        lib.set_adapter_cvec(context, values.ctypes.data, values.size, values.shape[1], 1, layers)
        == 0
    )
    size, rows = lib.vocab_n_tokens(lib.model_get_vocab(model)), []
    for ids in json.load(sys.stdin):
        lib.memory_clear(lib.get_memory(context), True)
        tokens = (c_int32 * len(ids))(*ids)
        assert lib.decode(context, lib.batch_get_one(tokens, len(ids))) == 0
        rows.append(lib.get_logits_ith(context, -1)[:size])
    print(json.dumps(rows), flush=True)
    os._exit(0)  # its threads may never end


if __name__ == "__main__":
    main()
