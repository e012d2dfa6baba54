"""report.html: everything that is there is shown, nothing that a model wrote is obeyed."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pytest

from safesteer.config.settings import TrainSettings
from safesteer.files import write_jsonl
from safesteer.report import transcripts
from safesteer.report.findings import read_findings
from safesteer.report.page import render_page
from safesteer.report.results import change_words
from safesteer.report.template import tight

VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "line", "circle", "polygon", "polyline"}


class Page(html.parser.HTMLParser):
    """Elements, attributes and text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.within: list[str] = []  # the element that each piece of text is in, as a path
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, (tag, self._open[-3:])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        self.within.append(" ".join(f"{tag}.{style}" for tag, style in self._open))

    def places_of(self, piece: str) -> list[str]:
        """Where a piece of text stands."""
        return [place for place, text in zip(self.within, self.text, strict=True) if piece in text]


def test_a_finished_run_shows_every_section(new_run, judged):
    text = render_page(read_findings(new_run(benchmarks=judged)))
    page = Page(text)
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    assert {
        "results", "direction", "tokens", "training", "rollouts", "states", "cost", "transcripts",
    } <= ids  # fmt: skip
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links <= {f"#{name}" for name in ids}
    shown = " ".join(page.text)
    for said in (
        "refuses 80.0% of harmful requests (base: 5.0%)",
        "+75.0\u00a0points",
        "no detectable difference",
        "harmbench",
        "-40.0\u00a0points",
        "2 without verdict",
        "6% of refusals truncated",
        "layer 2, strength 1, position -1",
        "KL 0.2 over 0.1",
        "30 steps",
        "owner/some-chat-model",
    ):
        assert said in shown, said
    assert "truncated" in [piece.strip() for piece in page.text]  # of a transcript
    assert len(text) < 2_000_000


def test_charts_have_names_and_tables(new_run):
    page = Page(render_page(read_findings(new_run())))
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) > 15
    assert all(attrs["aria-label"] for attrs in charts)
    assert sum(tag == "table" for tag, _ in page.tags) >= 8


def test_the_page_loads_nothing(new_run):
    text = render_page(read_findings(new_run()))
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in {"img", "link", "iframe", "object", "embed", "form"}
        assert "src" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
    shown = (
        TrainSettings().advanced.vllm.server_base_url
    )  # the one address among the settings' defaults
    assert not re.search(r"url\(|@import|https?:", text.replace(shown, ""))
    policies = [attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs]
    assert len(policies) == 1 and "default-src 'none'" in (policies[0] or "")


def test_hostile_answers_are_shown_and_not_obeyed(new_run, hostile):
    run = new_run(text=hostile)
    text = render_page(read_findings(run))
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    shown = "".join(page.text)
    for said in (
        "</script><script>",
        "{{ 7 * 7 }}",
        "[U+202E]",
        "[U+2066]",
        "[U+D800]",
        "[U+0000]",
    ):
        assert said in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\ud800-\udfff\x00\x1b]", text)
    text.encode("utf-8")


def test_harmful_answers_stand_behind_the_warning_alone(new_run):
    run = new_run(text="SECRET")
    page = Page(render_page(read_findings(run)))
    for piece in ("SECRET", "harmful prompt 0?", "harmful rollout?"):
        places = page.places_of(piece)
        assert places
        if piece == "SECRET":  # also a token's text, a note, and the harmless rollout's token
            places = [p for p in places if "answer" in p.rpartition(" ")[2]]
        assert places and all("details.warning" in place for place in places)
    opened = [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs]
    assert opened == []


@pytest.mark.parametrize("until", ["direction", "tokens", "train"])
def test_a_run_that_stopped_shows_what_there_is(new_run, until):
    text = render_page(read_findings(new_run(until=until)))
    page = Page(text)
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    assert "direction" in ids and "transcripts" not in ids and "rollouts" not in ids
    assert ("tokens" in ids) == (until != "direction")
    assert ("training" in ids) == (until == "train")
    assert "has not been evaluated yet" in " ".join(page.text)


def test_without_measurements_the_rest_is_shown(new_run):
    page = Page(render_page(read_findings(new_run(until="evaluate")), "the model is not here"))
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    assert "rollouts" not in ids and "states" not in ids and "transcripts" in ids
    shown = " ".join(page.text)
    assert "the model is not here" in shown
    assert "aligned model's probabilities were not measured" in shown


def test_an_unfinished_and_a_stale_stage_are_named(new_run):
    run = new_run()
    run.manifest["stages"]["evaluate"]["inputs"]["train"] = {"train/metrics.jsonl": "other"}
    run.manifest["stages"]["train"]["status"] = "done"
    findings = read_findings(run)
    assert findings.stale == ["evaluate"]
    assert "Stage evaluate is out of date: an earlier stage was run again" in render_page(findings)
    run.manifest["stages"]["evaluate"]["status"] = "interrupted"
    assert "Stage evaluate was interrupted." in render_page(read_findings(run))


def test_long_transcripts_are_cut_with_a_note(new_run, monkeypatch):
    monkeypatch.setattr(transcripts, "TRANSCRIPT_CHARACTERS", 60_000)
    text = render_page(read_findings(new_run(text="word " * 2000)))
    assert len(text) < 400_000
    assert "[…]" in text
    assert re.search(r"harmful requests: first \d+ of 20; all are in eval/samples", text)


def test_optional_keys_may_be_missing(new_run):
    bare = {"other": {"metric": "accuracy", "value": None, "n": 0, "kind": "capability"}}
    run = new_run(benchmarks={"aligned": bare})
    Page(render_page(read_findings(run)))
    metrics = run.path / "train" / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo', "utf-8")
    for name in ("teacher", "base"):
        (run.path / "eval" / f"{name}.json").unlink()
    findings = read_findings(run)
    assert len(findings.steps) == 1
    Page(render_page(findings))


def test_agreement_that_was_not_read_in_float32_says_so(new_run):
    entry = {"metric": "next_token_agreement", "value": 0.95, "ci95": [0.94, 0.96], "n": 20}
    drift = {"judge": None, "kind": "capability"}
    for dtype, shown in (("float32", False), ("bfloat16", True)):
        run = new_run(benchmarks={"aligned": {"agreement": {**entry, **drift, "dtype": dtype}}})
        text = " ".join(Page(render_page(read_findings(run))).text)
        assert ("of cases (measured in bfloat16, where rounding alone lowers it)" in text) is shown
        assert ("95.0% in bfloat16" in text) is shown


def test_the_page_is_the_same_each_time(new_run):
    run = new_run()
    assert render_page(read_findings(run)) == render_page(read_findings(run))


def test_pairs_need_the_same_prompts(new_run):
    run = new_run(refused=(20, 0, 1))
    findings = read_findings(run)
    assert change_words(findings, "harmful").startswith("+95.0 points")
    assert change_words(findings, "agreement") == ""
    findings.samples["harmful"]["aligned"][3]["prompt"] = "another"
    assert change_words(findings, "harmful") == ""
    findings.samples["harmful"]["aligned"].pop()
    assert change_words(findings, "harmful") == ""


def test_answers_that_are_right_or_wrong_are_shown_as_such(new_run):
    run = new_run()
    rows = [{"id": "a", "category": "", "prompt": "2 + 2?", "completion": "4", "score": 1.0}]
    rows += [{**rows[0], "id": "b", "score": 0.0}, {**rows[0], "id": "c", "score": None}]
    write_jsonl(run.path / "eval" / "samples" / "aligned-gsm8k.jsonl", rows)
    page = Page(render_page(read_findings(run)))
    assert page.text.count("right") == 1 and page.text.count("wrong") == 1


def test_figures_do_not_break_over_lines():
    assert tight("6.7% (3-16, n = 60)") == "6.7% (3\u201316, n\u00a0=\u00a060)"


def test_templates_are_in_the_package():
    import safesteer.report

    folder = Path(safesteer.report.__file__).parent
    names = {path.name for path in folder.iterdir()}
    assert {"page.html.j2", "compare.html.j2", "card.md.j2", "style.css", "filter.js"} <= names
