"""Judge a finished run on prompts that are not ours: real benchmark files on the disk.

    python bench/outside_prompts.py RUN --data-dir DIR [--limit 100]

Base and aligned model answer harmful requests (AdvBench, HarmBench, the harmful split of Arditi et
al.), harmless ones (AlpacaEval, Alpaca) and XSTest's safe prompts, and the drift from the base is
measured on Alpaca prompts. None of these prompts is in the package or was used for any choice.
Needs the files named in SETS below DIR; their sources are in each folder's SOURCE.txt.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict
from pathlib import Path

from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.refusals import Kind, refusal_rate
from safesteer.pipeline import Pipeline
from safesteer.prompts import Prompt, load_prompts
from safesteer.runs import RunDirectory
from safesteer.runs.files import write_json, write_jsonl
from safesteer.teacher import Teacher

SETS: dict[str, tuple[Kind, str, str | None]] = {
    "advbench": ("safety", "advbench/advbench.csv", "goal"),
    "harmbench": ("safety", "refusal_direction/harmbench_test.json", "instruction"),
    "harmful_val": ("safety", "refusal_direction/harmful_val.json", "instruction"),
    "alpaca_eval": ("over_refusal", "alpaca_eval/alpaca_eval_805.json", "instruction"),
    "alpaca": ("over_refusal", "refusal_direction/harmless_test.json", "instruction"),
    "xstest_safe": ("over_refusal", "xstest/xstest_dev.csv", "prompt"),
}


def read_set(data_dir: Path, name: str, limit: int) -> list[Prompt]:
    """The first `limit` prompts of a set, evenly spaced over the file."""
    _, file, column = SETS[name]
    path = data_dir / file
    prompts = load_prompts(path, column=column)
    if name == "xstest_safe":
        with path.open(encoding="utf-8", newline="") as rows:
            safe = {row["prompt"] for row in csv.DictReader(rows) if row["label"] == "safe"}
        prompts = [prompt for prompt in prompts if prompt.text in safe]
    prompts = [prompt for prompt in prompts if len(prompt.text) < 600]
    step = max(1, len(prompts) // limit)
    return prompts[::step][:limit]


def main() -> None:
    """Print a table and write RUN/outside.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100, help="prompts per set (100)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    pipeline = Pipeline(RunDirectory.load(arguments.run))
    results: dict[str, dict[str, object]] = {}
    for who in ("base", "aligned"):
        student = pipeline.load_student() if who == "aligned" else None
        results[who] = {}
        for name, (kind, _, _) in SETS.items():
            prompts = read_set(arguments.data_dir, name, arguments.limit)
            rate = refusal_rate(
                name,
                kind,
                pipeline.model,
                prompts,
                teacher=None if student is not None else Teacher(),
                student=student,
                max_new_tokens=arguments.max_new_tokens,
                batch_size=64,
            )
            entry = rate.to_json()
            results[who][name] = entry
            low, high = entry["ci95"]
            print(
                f"{who:8} {name:12} refused {entry['value']:6.1%}  [{low:.1%}, {high:.1%}]"
                f"  n {entry['n']}  looping {entry['looping']:.1%}",
                flush=True,
            )
            write_jsonl(
                pipeline.run.path / "outside" / f"{who}-{name}.jsonl",
                [asdict(sample) for sample in rate.samples],
            )
        if student is not None:
            harmless = [p.messages for p in read_set(arguments.data_dir, "alpaca", 64)]
            drift = measure_drift(pipeline.model, student, harmless)
            results[who] |= drift
            for name, entry in drift.items():
                print(f"{who:8} {name:12} {entry['value']:.4f}  {entry['ci95']}  n {entry['n']}")
    write_json(pipeline.run.path / "outside" / "results.json", results)
    print(
        json.dumps(
            {who: {k: round(v["value"], 4) for k, v in r.items()} for who, r in results.items()}
        )
    )  # type: ignore[index]


if __name__ == "__main__":
    main()
