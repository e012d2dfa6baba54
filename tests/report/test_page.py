"""report.html: all findings are shown, nothing a model wrote is obeyed; also in a browser."""

from __future__ import annotations

import re

import pytest
from parsed import Page

from safesteer.config.settings import TrainSettings
from safesteer.report.findings import read_findings
from safesteer.report.page import render_page


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
        "\\u202e",
        "\\u2066",
        "\\ud800",
        "\\x00",
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


def test_optional_keys_may_be_missing(new_run):
    bare = {"other": {"metric": "accuracy", "value": None, "n": 0, "kind": "capability"}}
    Page(render_page(read_findings(new_run(benchmarks={"aligned": bare}))))


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


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_keeps_quiet(browser, new_run, hostile, judged, width, dark):
    page = new_run(text=hostile, benchmarks=judged).path / "report.html"
    page.write_text(render_page(read_findings(new_run("again", text=hostile, benchmarks=judged))))
    browser.check(page, width, dark)
    assert browser.value("document.title").startswith("some-chat-model")
    assert browser.value("document.querySelectorAll('img').length") == 0


def test_the_filter_hides_and_counts(browser, new_run):
    page = new_run().path / "report.html"
    page.write_text(render_page(read_findings(new_run("again"))))
    browser.check(page, 1280)
    assert browser.value("document.getElementById('filter-count').textContent") == "60 of 60"
    choose = (
        "(function (id, value) { var box = document.getElementById(id); box.value = value;"
        " box.dispatchEvent(new Event('change')); })"
    )
    browser.value(f"{choose}('filter-set', 'harmful')")
    browser.value(f"{choose}('filter-verdict', 'aligned-answered')")
    assert browser.value("document.getElementById('filter-count').textContent") == "4 of 60"
    shown = "[...document.querySelectorAll('.transcript')].filter(row => row.offsetParent).length"
    assert browser.value(shown) == 4


def test_harmful_answers_are_not_seen_until_they_are_asked_for(browser, new_run):
    page = new_run().path / "report.html"
    page.write_text(render_page(read_findings(new_run("again", text="SECRET"))))
    browser.open(page, 375)
    seen = "[...document.querySelectorAll('.answer')].filter(e => e.checkVisibility()).length"
    assert browser.value(seen) == 0
    browser.value("document.querySelectorAll('.warning').forEach(d => { d.open = true; })")
    browser.value("document.querySelectorAll('.transcript').forEach(d => { d.open = true; })")
    assert browser.value(seen) == 180
