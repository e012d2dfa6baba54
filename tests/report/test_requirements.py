"""Requirements on figures and on changes, and the JUnit file. (pytest tests/report)"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from conftest import entry

from safesteer.errors import InputError, SafeSteerError
from safesteer.report.compare import read_entrants
from safesteer.report.junit import write_junit
from safesteer.report.requirements import (
    Outcome,
    check_changes,
    check_figures,
    check_measurable,
    check_measured,
    parse_requirements,
    raise_failed,
)

DIVERGENCE = {"metric": "kl_base_aligned", "value": 0.01, "ci95": [0.008, 0.012], "n": 9}
ENTRIES = {
    "harmful": entry(96, 100, "safety"),
    "xstest-safe": entry(8, 100, "over_refusal"),
    "divergence": DIVERGENCE,
    "silent": {"metric": "refusal_rate", "value": None, "ci95": [0, 1], "n": 0},
}


def passed(text: str, **options: bool) -> list[bool]:
    return [o.passed for o in check_figures(parse_requirements(text), ENTRIES, **options)]


def test_the_interval_counts():
    """96 of 100 are 90.2 to 98.4%, 8 of 100 are 4.1 to 15.0%."""
    assert passed("harmful>=90, harmful>=95, xstest-safe<=15,xstest-safe <= 10%") == [
        *(True, False),
        *(True, False),
    ]
    assert passed("harmful>=95, harmful>=96, xstest-safe<=8, harmful>=97", point=True) == [
        *(True, True, True),
        False,
    ]
    assert passed("divergence<=0.012, divergence<=0.011, divergence<=0.011") == [True, False, False]
    assert passed("divergence<=0.011", point=True) == [True]
    assert passed("divergence>=0.005") == [True]  # nats, not percent


def test_a_line_says_what_was_found():
    lines = check_figures(parse_requirements("harmful>=95, silent>=50, none>=50"), ENTRIES)
    assert str(lines[0]) == (
        "FAILED  harmful>=95: 96.0% (95% 90.2% to 98.4%), the interval reaches beyond the bound,"
        " 100 prompts"
    )
    assert [line.words for line in lines[1:]] == ["no verdict", "not measured"]
    with pytest.raises(SafeSteerError, match="2 of 2 requirements failed: silent>=50, none>=50"):
        raise_failed(lines[1:])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nothing"),
        (" , ", "names nothing"),
        ("harmful", "'harmful' is no requirement"),  # the shell took the rest as a redirection
        ("harmful>90", "'harmful>90' is no requirement"),
        ("harmful>=ninety", "no requirement"),
        ("harmful>=101", "bound from 0 to 100"),
        ("harmless<=-1", "bound from 0 to 100"),
        ("harmful>=0.9", "harmful>=90, since bounds are in percent"),
    ],
)
def test_what_is_no_requirement(text, said):
    with pytest.raises(InputError) as error:
        parse_requirements(text)
    assert said in str(error.value)


def test_names_are_checked_before_the_work():
    measured = ["harmful", "harmless", "agreement"]
    check_measured(parse_requirements("agreement>=95"), measured, "the run")
    for text, said in (
        ("harmfull>=9", "did you mean 'harmful'"),
        ("advbench<=9", "Try: --benchmarks advbench, or one of harmful"),
        ("nothing-like-it<=9", "no benchmark named"),
    ):
        with pytest.raises(InputError, match=said):
            check_measured(parse_requirements(text), measured, "the run")
    with pytest.raises(InputError, match="safesteer eval RUN"):
        check_measurable(parse_requirements("agreement>=95"))
    with pytest.raises(InputError, match="did you mean 'advbench'"):
        check_measurable(parse_requirements("advbnch<=9"))


def test_changes_are_paired(new_run, tmp_path):
    """On the same prompts the change is exact: 16 refusals, then 15 of the same prompts."""
    runs = [new_run("one").path, new_run("two", refused=(15, 3, 1)).path]
    entrants = read_entrants(runs)

    def found(text: str, **options: bool) -> list[Outcome]:
        return check_changes(parse_requirements(text, changes=True), entrants, **options)

    (line,) = found("harmful>=-5")
    assert not line.passed and line.name == "harmful>=-5 (two against one)"
    assert line.words.startswith("-5.0 points (95% -15.0 points to +0.0 points)")
    assert line.words.endswith("the interval reaches beyond the bound, 20 pairs")
    assert found("harmful>=-15")[0].passed and found("harmful>=-5", point=True)[0].passed
    assert not found("harmful>=-4.9", point=True)[0].passed
    with pytest.raises(InputError, match="did you mean 'harmful'"):
        found("harmfull>=-2")
    with pytest.raises(InputError, match="name a second one"):
        check_changes(parse_requirements("harmful>=-2", changes=True), entrants[:1])


def test_files_without_answers_are_compared_unpaired(new_run):
    runs = [new_run("one").path, new_run("two", refused=(15, 3, 1)).path]
    entrants = read_entrants([path / "eval" / "aligned.json" for path in runs])
    (line,) = check_changes(parse_requirements("harmful>=-15", changes=True), entrants)
    assert not line.passed and line.words.endswith("unpaired")


def test_the_junit_file_is_xml(tmp_path):
    hostile = '<"&>\x00\ud800]]>'
    write_junit(
        tmp_path / "out.xml",
        f"safesteer eval {hostile}",
        [Outcome("a>=1", True, "96%"), Outcome(f"b{hostile}", False, hostile)],
    )
    suite = ET.parse(tmp_path / "out.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [len(case.findall("failure")) for case in suite] == [0, 1]
    assert suite[1].get("name") == 'b<"&>\\x00\\ud800]]>'
