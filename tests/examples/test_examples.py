"""The examples run from top to bottom on a tiny model. (pytest tests/examples)"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "first_run.ipynb"


def test_the_trl_script_trains_and_leaves_an_adapter(tiny_model_folder, tmp_path):
    sizes = ["--max_steps=2", "--per_device_train_batch_size=4", "--max_completion_length=4"]
    script = [sys.executable, EXAMPLES / "train_with_trl.py"]
    script += [f"--model_name_or_path={tiny_model_folder}", f"--output_dir={tmp_path / 'out'}"]
    done = subprocess.run(
        [*script, *sizes],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "safety tokens" in done.stdout and "harmful prompts refused:" in done.stdout
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [row["step"] for row in state["log_history"] if "loss" in row] == [1, 2]


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_the_notebook_runs_and_shows_no_answers(tiny_model_folder, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("SAFESTEER_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("SAFESTEER_SIZE", "tiny")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The last cell of the test tells what was answered, to look for it in what the others show.
    tell = "print([s.completion for s in safesteer.refusal_rate(model,"
    tell += " sets['harmful'].test[:PROMPTS], student=student, max_new_tokens=ANSWER).samples])"
    notebook.cells.append(nbformat.v4.new_code_cell(tell))
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    *shown, answers = [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    text = "\n".join(shown)
    for said in ("layer", "tokens hold", "2/2  loss", "before,", "agreement with the base"):
        assert said in text
    told = [answer for answer in ast.literal_eval(answers) if len(answer) > 8]
    assert not [answer for answer in told if answer in text]
