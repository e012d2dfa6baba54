"""A control vector steers as the teacher is steered, in llama.cpp too. (pytest tests/export)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch

from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.export import control_vector, gguf_file
from safesteer.export.formats import export
from safesteer.export.llama_cpp import is_installed
from safesteer.export.source import load_source
from safesteer.export.verify import expect
from safesteer.files import load_tensors
from safesteer.runs.directory import RunDirectory

EXACT = 1e-4
LLAMA_C = Path(__file__).parents[1] / "llama_c.py"


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_the_file_steers_as_the_teacher_is_steered(make_run, tmp_path, build, name):
    run = make_run(build(name), layer=2)
    made = export(run, "control-vector", tmp_path / "out.gguf")
    assert made.difference <= EXACT and made.read_by == ["gguf"]
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert facts["general.architecture"] == "controlvector"
    assert facts["controlvector.model_hint"] == name
    assert "input of block 2, times the coefficient 1.5" in facts["general.description"]
    (tensor,) = reader.tensors
    vector = load_tensors(run / "direction" / "direction.safetensors")["direction"]
    # The run's coefficient is 3, and the teacher's strength 0.5.
    assert tensor.name == "direction.1" and tensor.tensor_type.name == "F32"
    assert torch.allclose(torch.tensor(tensor.data), 1.5 * vector)


@pytest.mark.skipif(not is_installed(), reason="llama.cpp (xllamacpp) is not installed")
@pytest.mark.parametrize(
    ("name", "layer"), [("llama", 2), ("llama", 3), ("qwen2", 2), ("qwen3", 3)]
)
def test_llama_cpp_steers_as_the_teacher_is_steered(make_run, tmp_path, build, name, layer):
    """Another block, a factor twice as large or the plain base would differ by far more."""
    source = load_source(
        RunDirectory.load(make_run(build(name), layer=layer)),
        "teacher",
        Reporter(),
        dequantize=True,
    )
    expected = expect(source)
    control_vector.write(source, tmp_path / "vector.gguf", torch.float32)
    model = source.variant.model.model
    base = tmp_path / "base.gguf"
    gguf_file.write_model(source, model, base, torch.float32, "gpt-2")
    done = subprocess.run(
        [sys.executable, str(LLAMA_C), str(base), str(tmp_path / "vector.gguf")],
        input=json.dumps(expected.prompts),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-500:]
    found = torch.tensor(json.loads(done.stdout)).log_softmax(-1)
    wanted = torch.stack([rows[-1] for rows in expected.log_probs])
    plain = torch.stack([model(torch.tensor([p])).logits[0, -1] for p in expected.prompts])
    assert (plain.log_softmax(-1) - wanted).abs().max() > 0.5
    # llama.cpp's cache and attention are in float16 here.
    assert (found - wanted).abs().max() < 0.05


@pytest.mark.parametrize(
    ("layer", "said"), [(None, "not steered"), (0, "block 0"), (1, "from the input of block 2 on")]
)
def test_teachers_that_llama_cpp_cannot_steer(make_run, tmp_path, layer, said):
    with pytest.raises(InputError, match=said):
        export(make_run(layer=layer), "control-vector", tmp_path / "out.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}
