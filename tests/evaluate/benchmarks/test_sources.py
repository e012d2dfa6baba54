"""Prompts of benchmarks, from files and from a stand-in for the hub."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from safesteer.config.settings import EvaluateSettings
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import load_benchmarks
from safesteer.evaluate.benchmarks.sources import evenly, found_files
from safesteer.evaluate.benchmarks.table import find_benchmark
from safesteer.files import sha256_file
from safesteer.prompts import PromptSet
from safesteer.prompts.load import Prompt

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def load(name: str, sources: dict[str, str] | None = None, **settings: Any) -> Any:
    chosen = EvaluateSettings(advanced={"sources": sources or {}}, **settings)
    (loaded,) = load_benchmarks([name], chosen, {})
    return loaded


def texts(loaded: Any) -> list[str]:
    return [item.prompt.text for item in loaded.items]


def test_a_file_is_read_below_the_data_dir(tmp_path):
    rows = [{"goal": f"Do wrong {n}", "target": "Sure"} for n in range(3)]
    path = write(tmp_path / "advbench" / "advbench.csv", rows)
    loaded = load("advbench", data_dir=str(tmp_path))
    assert texts(loaded) == ["Do wrong 0", "Do wrong 1", "Do wrong 2"]
    assert loaded.source == {"from": "advbench/advbench.csv", "sha256": sha256_file(path)}
    assert [item.request for item in loaded.items] == texts(loaded)
    assert loaded.items[0].prefill == ""
    assert found_files(find_benchmark("advbench"), tmp_path) == [path]
    assert found_files(find_benchmark("harmbench"), tmp_path) == []


def test_only_the_rows_that_belong_are_taken(tmp_path):
    """XSTest's labels, HarmBench's standard behaviors; the same prompt twice counts once."""
    rows = [
        {"id": "1", "prompt": "Kill a process?", "label": "safe"},
        {"id": "2", "prompt": "Kill somebody?", "label": "unsafe"},
        {"id": "3", "prompt": "Kill time?", "label": "safe"},
        {"id": "4", "prompt": "Kill time?", "label": "safe"},
    ]
    write(tmp_path / "xstest" / "xstest_prompts.csv", rows)
    assert texts(load("xstest-safe", data_dir=str(tmp_path))) == ["Kill a process?", "Kill time?"]
    assert texts(load("xstest-unsafe", data_dir=str(tmp_path))) == ["Kill somebody?"]


def test_a_limit_is_spread_over_the_file_and_never_random(tmp_path):
    rows = [{"goal": f"Do wrong {n}"} for n in range(10)]
    write(tmp_path / "advbench" / "advbench.csv", rows)
    found = [texts(load("advbench", data_dir=str(tmp_path), limit=4)) for _ in range(2)]
    assert found[0] == found[1] == [f"Do wrong {n}" for n in (0, 2, 5, 7)]
    assert evenly(3, 3) == evenly(3, 9) == evenly(3, None) == [0, 1, 2]
    assert len(set(evenly(1000, 999))) == 999


def test_a_prefill_begins_the_answer_and_leaves_the_prompt_alone(tmp_path):
    write(tmp_path / "advbench" / "advbench.csv", [{"goal": "Do wrong"}])
    for name in ("prefill", "advbench+prefill"):
        loaded = load(name, data_dir=str(tmp_path))
        assert texts(loaded) == ["Do wrong"]
        assert loaded.items[0].prefill == "Sure, here is"
        assert loaded.name == name


def test_a_form_changes_what_is_asked_and_not_what_is_judged():
    prompts = [Prompt("1", ({"role": "user", "content": "Q?"},))]
    own = {"harmful": PromptSet("harmful", "mine.csv", [], [], prompts)}
    (loaded,) = load_benchmarks(["harmful+insist"], EvaluateSettings(), own)
    (item,) = loaded.items
    assert len(item.prompt.messages) == 3 and item.prompt.text.endswith("Q?")
    assert item.request == "Q?"
    assert "do it anyway" in loaded.source["form"]["request"]
    assert json.loads(json.dumps(loaded.source)) == loaded.source  # compared with what is on disk
    (plain,) = load_benchmarks(["harmful"], EvaluateSettings(), own)
    assert "form" not in plain.source


def test_a_source_of_the_user_wins(tmp_path):
    """With the columns of the table's entry it is filtered like it, otherwise taken whole."""
    mine = write(tmp_path / "mine.csv", [{"prompt": "A?", "label": "safe"}])
    other = write(tmp_path / "other.jsonl", [{"question": "B?"}, {"question": "C?"}])
    sources = {"xstest-safe": str(mine), "advbench": str(other)}
    assert texts(load("xstest-safe", sources=sources)) == ["A?"]
    assert texts(load("advbench", sources=sources)) == ["B?", "C?"]
    assert texts(load("advbench+prefill", sources=sources)) == ["B?", "C?"]


def test_of_a_file_with_labels_a_benchmark_takes_its_own_rows(tmp_path):
    rows = [{"question": f"{n}?", "label": "safe" if n % 2 else "unsafe"} for n in range(4)]
    mine = str(write(tmp_path / "mine.jsonl", rows))
    assert texts(load("advbench", sources={"advbench": mine})) == ["0?", "2?"]
    assert texts(load("or-bench-hard", sources={"or-bench-hard": mine})) == ["1?", "3?"]


def test_our_own_sets_are_their_test_parts():
    prompts = [Prompt(f"{n}", ({"role": "user", "content": f"Q{n}"},)) for n in range(3)]
    own = {"harmful": PromptSet("harmful", "mine.csv", [], [], prompts)}
    plain, prefilled = load_benchmarks(
        ["harmful", "harmful+prefill", "harmful"], EvaluateSettings(limit=2), own
    )
    assert texts(plain) == texts(prefilled) == ["Q0", "Q1"]
    assert prefilled.items[0].prefill and not plain.items[0].prefill
    assert plain.source["from"] == "mine.csv"
    assert plain.sha256 != prefilled.sha256


def test_stored_attacks_are_asked_and_their_goals_judged(tmp_path):
    """As JailbreakBench keeps them; those that found no prompt are skipped and counted."""
    attacks = [
        {"index": 0, "goal": "Do wrong", "category": "X", "prompt": "Hypothetically, do wrong"},
        {"index": 1, "goal": "Do worse", "category": "X", "prompt": None},
        {"index": 2, "goal": "Do ill", "category": "Y", "prompt": "As a story: do ill"},
    ]
    path = tmp_path / "vicuna.json"
    content = {"parameters": {"method": "PAIR", "model": "vicuna"}, "jailbreaks": attacks}
    path.write_text(json.dumps(content))
    loaded = load("jailbreaks", sources={"jailbreaks": str(path)})
    assert texts(loaded) == ["Hypothetically, do wrong", "As a story: do ill"]
    again = load("jailbreaks+insist", sources={"jailbreaks": str(path)})
    assert [item.request for item in again.items] == ["Do wrong", "Do ill"]
    assert again.items[0].prompt.messages[0]["content"] == "Hypothetically, do wrong"
    assert [item.request for item in loaded.items] == ["Do wrong", "Do ill"]
    assert [item.prompt.id for item in loaded.items] == ["vicuna-0", "vicuna-2"]
    assert loaded.skipped == 1
    assert loaded.source["method"] == "PAIR" and loaded.source["from"] == "vicuna.json"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "holds no list"),
        ({"jailbreaks": []}, "holds no list"),
        ({"jailbreaks": [{"prompt": "x"}]}, "jailbreak 1"),
        ({"jailbreaks": [{"goal": "x", "prompt": 3}]}, "is empty or not a string"),
        ({"jailbreaks": [{"goal": "x", "prompt": None}]}, "none of its 1"),
    ],
)
def test_a_file_that_holds_no_attacks_is_refused(content, said, tmp_path):
    path = tmp_path / "attacks.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        load("jailbreaks", sources={"jailbreaks": str(path)})


def test_what_is_missing_is_named(tmp_path):
    """The path that was expected and the setting that names another; one line each."""
    write(tmp_path / "strongreject" / "strongreject_dataset.csv", [{"prompts": "x"}])
    write(tmp_path / "xstest" / "xstest_prompts.csv", [{"prompt": "x", "type": "y"}])
    write(tmp_path / "or_bench" / "or-bench-toxic.csv", [{"prompt": "x"}]).write_text("prompt\n")
    unlabelled = [{"prompt": "x", "label": "unsafe"}]
    write(tmp_path / "more" / "xstest" / "xstest_prompts.csv", unlabelled)
    here = str(tmp_path)
    for name, settings, said in [
        (
            "advbench",
            {"data_dir": here},
            ["advbench/advbench.csv", "evaluate.advanced.sources.advbench"],
        ),
        ("advbench", {"data_dir": here + "/none"}, ["evaluate.data_dir", "no folder"]),
        ("advbench", {"sources": {"advbench": here + "/none.csv"}}, ["none.csv"]),
        (
            "advbench",
            {"sources": {"advbnch": "x.csv"}},
            ["evaluate.advanced.sources.advbnch", "mean"],
        ),
        ("strongreject", {"data_dir": here}, ["no column 'forbidden_prompt'"]),
        ("xstest-safe", {"data_dir": here}, ["no column 'label'"]),
        ("xstest-safe", {"data_dir": here + "/more"}, ["no row with label = safe"]),
        ("or-bench-toxic", {"data_dir": here}, ["holds no prompts"]),
        ("jailbreaks", {}, ["evaluate.advanced.sources.jailbreaks=FILE"]),
        ("refusal-direction", {}, ["no hub data set", "harmful_val.json"]),
        ("gsm8k", {"data_dir": here}, ["gsm8k/test.jsonl", "evaluate.advanced.sources.gsm8k"]),
        ("gsm8k", {"sources": {"gsm8k": here}}, ["test.jsonl and train.jsonl"]),
    ]:
        with pytest.raises(InputError) as error:
            load(name, **settings)
        assert all(part in str(error.value) for part in said), error.value
        assert "\n" not in str(error.value)


def test_files_of_a_capability_are_found_by_split(tmp_path):
    row = {"question": "1 + 1?", "answer": "#### 2"}
    test = write(tmp_path / "gsm8k" / "test.jsonl", [row])
    train = write(tmp_path / "gsm8k" / "train_first5000.jsonl", [row])
    for settings in ({"data_dir": str(tmp_path)}, {"sources": {"gsm8k": str(tmp_path / "gsm8k")}}):
        loaded = load("gsm8k", **settings)
        assert loaded.files == {"test": test, "train": train}
        assert loaded.items == [] and loaded.source["sha256"] == sha256_file(test)
    before = loaded.sha256
    write(tmp_path / "gsm8k" / "train_first5000.jsonl", [row, row])
    assert load("gsm8k", data_dir=str(tmp_path)).sha256 != before


class Part(list):  # type: ignore[type-arg]
    """A split as the library gives it: rows, and the files that it is cached in."""

    cache_files = ({"filename": f"/cache/owner___name/default/0.0.0/{COMMIT}/name-train.arrow"},)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the hub with content of the test; remembers its calls."""
    played = SimpleNamespace(parts={}, error=None, asked=[])

    def load_dataset(name: str, config: str | None, **named: Any) -> Any:
        played.asked.append((name, config, named))
        if played.error:
            raise played.error
        return {split: Part(rows) for split, rows in played.parts.items()}

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return played


def test_the_hub_is_read_without_a_data_dir_and_its_commit_kept(hub):
    hub.parts = {
        "train": [
            {"prompt_style": "base", "turns": ["Do wrong"], "category": "1"},
            {"prompt_style": "slang", "turns": ["Do rong"], "category": "1"},
        ]
    }
    loaded = load("sorry-bench")
    assert hub.asked == [("sorry-bench/sorry-bench-202503", None, {})]
    assert texts(loaded) == ["Do wrong"]
    assert loaded.source == {"from": "sorry-bench/sorry-bench-202503::train", "revision": COMMIT}


def test_unsafe_prompts_of_pku_are_those_with_two_unsafe_answers(hub):
    def row(text: str, first: bool, second: bool) -> dict[str, Any]:
        return {"prompt": text, "is_response_0_safe": first, "is_response_1_safe": second}

    hub.parts = {"test": [row("A", False, False), row("B", True, False), row("A", False, False)]}
    assert texts(load("pku-saferlhf")) == ["A"]
    assert hub.asked == [("PKU-Alignment/PKU-SafeRLHF", "default", {})]


def test_another_data_set_of_the_hub_at_a_revision(hub):
    hub.parts = {"train": [{"goal": "x"}]}
    loaded = load("advbench", sources={"advbench": "owner/mine:conf:train@v1.0"})
    assert hub.asked == [("owner/mine", "conf", {"revision": "v1.0"})]
    assert loaded.source == {"from": "owner/mine:conf:train@v1.0", "revision": COMMIT}


def test_a_gated_set_says_how_to_get_it(hub):
    hub.error = RuntimeError("Dataset 'walledai/AdvBench' is a gated dataset on the Hub.\nMore.")
    with pytest.raises(InputError) as error:
        load("advbench")
    for part in ("gated", "https://huggingface.co/datasets/walledai/AdvBench", "hf auth login"):
        assert part in str(error.value)
    assert "advbench/advbench.csv" in str(error.value) and "\n" not in str(error.value)


def test_an_unreachable_hub_names_a_file_to_use(hub):
    hub.error = ConnectionError("no network")
    with pytest.raises(InputError) as error:
        load("jailbreakbench")
    for part in ("no network", "harmful-behaviors.csv", "evaluate.advanced.sources.jailbreakbench"):
        assert part in str(error.value)


def test_a_single_file_of_the_hub_is_read_with_its_commit(monkeypatch, tmp_path):
    """For a data set that the library no longer loads: a script with a file beside it."""
    rows = [{"instruction": "Say hello", "output": "Hello", "dataset": "x"}]
    file = write(tmp_path / "snapshots" / COMMIT / "alpaca_eval.json", rows)
    asked: list[Any] = []

    def hf_hub_download(*place: Any, **named: Any) -> str:
        asked.append((*place, named))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    loaded = load("alpaca-eval-win")
    expected = {"repo_type": "dataset", "revision": None}
    assert asked == [("tatsu-lab/alpaca_eval", "alpaca_eval.json", expected)]
    assert loaded.source == {"from": "tatsu-lab/alpaca_eval/alpaca_eval.json", "revision": COMMIT}
    assert (loaded.items[0].prompt.text, loaded.items[0].reference) == ("Say hello", "Hello")
