"""A report says what is so, and nothing that a user has written becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest

from orchestrator.analysis.compare import compare
from orchestrator.analysis.report import Axis, Curve, Entry, Report, render
from orchestrator.analysis.report.choosing import columns, metrics, objective, titles
from orchestrator.analysis.report.data import ranked
from orchestrator.analysis.report.html import el, link, program
from orchestrator.analysis.report.sections import sections
from orchestrator.analysis.report.tables import failures
from orchestrator.analysis.report.verdict import verdict
from orchestrator.domain.states import Reason
from tests.report_demo import METRIC, NIGHT, without_energy
from tests.unit.analysis.pages import Tags, figures
from tests.unit.cli.fake import detail, handed_over

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "<!--<script>",
    "%{x} <a href='javascript:alert(1)'>x</a>",
    "\u2028\u2029\x00&lt;b&gt;",
    "{{7*7}} ${7*7} ]]>",
)


# ------------------------------------------------------------------ what it says


def test_the_verdict_of_a_sweep(report: Report) -> None:
    best = min((e for e in report.entries if e.state == "complete"), key=lambda e: e.value or 9)
    said = verdict(report)
    assert said.startswith(f"Trial {best.number} is best: val/loss {best.value:.4f} at step ")
    assert "with learning_rate " in said
    assert re.search(r"better than the median of the \d+ that finished\.", said)
    counts = {
        state: sum(e.state == state for e in report.entries) for state in ("complete", "pruned", "failed")
    }
    assert said.endswith(
        f"Of 30 trials, {counts['complete']} finished, {counts['pruned']} pruned and 1 failed."
    )


def test_a_sweep_without_any_value_says_so(report: Report) -> None:
    empty = tuple(replace(e, value=None, curves={}, state="open", attempts=()) for e in report.entries[:2])
    bare = replace(report, entries=empty, best=None, kept=None, importance={})
    assert verdict(bare) == "No trial has a value of val/loss yet. Of 2 trials, 2 still open."
    assert [part.id for part in sections(bare)] == ["leaderboard"]
    assert "no trial" in verdict(replace(bare, entries=())).lower()
    assert render(bare)


def test_the_best_comes_first_and_broken_trials_last(report: Report) -> None:
    order = ranked(report)
    states = [report.entries[place].state for place in order]
    assert order[0] == report.best
    assert states == sorted(states, key=["complete", "pruned", "failed"].index)
    upwards = replace(report, direction="maximize", best=None)
    best = report.entries[ranked(upwards)[0]]
    assert best.value == max(e.value or 0 for e in report.entries if e.state == "complete")


def test_the_mean_of_a_point_counts_where_it_has_several_trials(report: Report) -> None:
    entries = [replace(e, state="complete", mean=float(n)) for n, e in enumerate(report.entries[:5])]
    several = replace(report, entries=tuple(entries), best=0)
    assert ranked(several) == [0, 1, 2, 3, 4]
    page = render(several)
    assert ">mean</button>" in page


def test_the_leaderboard_has_every_trial_and_marks_one(report: Report) -> None:
    tags = Tags(render(report))
    rows = [row for row in tags.all("tr") if row.get("class") == "best"]
    assert len(rows) == 1
    values = [cell for cell in tags.all("td") if cell.get("data-sort") == str(report.entries[4].value)]
    assert len(values) == 1
    assert sum("late" in (row.get("class") or "") for row in tags.all("tr")) == 10
    assert {"kWh", "cost (EUR)"} <= set(tags.text)


def test_little_energy_is_told_in_watt_hours(report: Report) -> None:
    entries = [replace(entry, energy_kwh=0.00004, cost=0.00001) for entry in report.entries]
    text = Tags(render(replace(report, entries=tuple(entries)))).text
    assert {"Wh", "0.040", "< 0.001", f"{0.04 * len(entries):.2f} Wh"} <= set(text)


def test_without_energy_there_are_no_columns_of_it(report: Report) -> None:
    text = Tags(render(without_energy(report))).text
    assert not [word for word in text if word in ("kWh", "cost (EUR)", "energy", "cost of energy")]
    assert not [word for word in text if "Energy is" in word]


def test_energy_adds_up_and_says_where_it_is_an_estimate(report: Report) -> None:
    page = render(report)
    table = page[page.index('<section id="machines">') :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    total = sum(entry.energy_kwh or 0 for entry in report.entries)
    assert [cells[0], cells[7]] == ["gaming-pc", "laptop"]
    assert float(cells[5]) + float(cells[12]) == pytest.approx(total, abs=0.02)
    assert "Energy is estimated in part." in page


def test_failures_name_the_command_that_shows_why(report: Report) -> None:
    found = failures(report)
    assert [(entry.number, one.reason) for entry, one in found] == [(7, Reason.NOT_FINITE)]
    text = Tags(render(report)).text
    assert "orch logs t0000007 --attempt 1" in text
    assert "step 1,700: the loss is nan; the last good checkpoint is step 1,500" in text


def test_the_best_checkpoint_and_how_to_go_on_from_it(report: Report) -> None:
    assert report.kept is not None
    assert report.kept.checkpoint is not None
    step, run = report.kept.checkpoint.step, report.kept.checkpoint.run
    text = Tags(render(report)).text
    assert f"orch resume {run} --at {step} --set trainer.max_steps=N" in text
    assert any("To light the window" in words for words in text)


# ------------------------------------------------------------------ runs


def runs_report(names: tuple[str, ...] = ("laptop", "gaming-pc")) -> Report:
    details = [handed_over("aaaa0001", names[0]), detail("bbbb0002", names[1], trainer={"n_layer": 6})]
    comparison = compare(details)
    metric, direction = objective(details)
    entries = tuple(
        Entry(
            run_id=one.run.id,
            name=title,
            state=one.run.state.value,
            params={row.key: row.values[n] for row in comparison.settings},
            value=1.9 - n / 10,
            step=one.run.step,
            attempts=tuple(one.attempts),
            curves={key: Curve((0, 100), (0, 5), (4.2, 1.9 - n / 10)) for key in metrics(details, metric)},
        )
        for n, (one, title) in enumerate(zip(details, titles(details), strict=True))
    )
    return Report(
        title=" · ".join(titles(details)),
        at=NIGHT,
        metric=metric,
        direction=direction,
        entries=entries,
        best=1,
        axes=columns(comparison),
        metrics=metrics(details, metric),
        comparison=comparison,
        zone=UTC,
    )


def test_runs_side_by_side() -> None:
    report = runs_report()
    assert report.metrics == ("val/loss", "train/loss")
    assert verdict(report) == (
        "gaming-pc has the lowest val/loss: 1.8000 at step 100. Against it laptop 1.9000 (+0.1000)."
    )
    assert [part.id for part in sections(report)] == ["leaderboard", "differences", "curves", "machines"]
    page = render(report)
    assert len(figures(page)) == 5
    assert "n_layer" in Tags(page).text


def test_one_run() -> None:
    both = runs_report()
    one = replace(both, entries=both.entries[:1], best=0, comparison=None, axes=())
    assert verdict(one).startswith("laptop, succeeded: 2,000 steps in ")
    assert "on laptop and gpu" in verdict(one)
    assert "best" not in [row.get("class") for row in Tags(render(one)).all("tr")]


def test_runs_of_one_name_are_told_apart() -> None:
    assert titles([detail("aaaa0001"), detail("bbbb0002")]) == ["demo aaaa0001", "demo bbbb0002"]


# ------------------------------------------------------------------ the page


def test_every_figure_has_its_place(report: Report) -> None:
    page = render(report)
    places = {div.get("id") for div in Tags(page).all("div") if div.get("class") == "figure"}
    assert places == {figure["id"] for figure in figures(page)}
    assert len(places) == 10


def test_the_policy_names_the_scripts_and_allows_no_request(report: Report) -> None:
    page = render(report)
    policy = next(m["content"] for m in Tags(page).all("meta") if m.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for element in ("link", "iframe", "img", "object", "embed", "base", "form"):
        assert not Tags(page).all(element)
    assert all("src" not in attributes for attributes in Tags(page).all("script"))


def hostile(report: Report, evil: str) -> Report:
    """The sweep with everything that a user can write replaced."""
    assert report.sweep is not None
    assert report.kept is not None
    assert report.kept.checkpoint is not None
    attempts = [
        tuple(
            a.model_copy(update={"node": evil, "message": evil, "device": evil, "pool": evil})
            for a in e.attempts
        )
        for e in report.entries
    ]
    entries = tuple(
        replace(e, name=evil, run_id=evil, message=evil, attempts=attempts[n], params={evil: evil})
        for n, e in enumerate(report.entries)
    )
    view = report.sweep.sweep.model_copy(update={"message": evil, "name": evil})
    found = report.kept.checkpoint.model_copy(
        update={"run": evil, "node": evil, "device": evil, "uri": evil, "metrics": {evil: 1.0}}
    )
    return replace(
        report,
        title=evil,
        metric=evil,
        entries=tuple(replace(e, curves={evil: e.curves[METRIC]}) for e in entries),
        axes=(Axis(evil, evil, choices=(evil, f"{evil}2")),),
        importance={evil: 1.0},
        links={evil: f"javascript:alert(1)//{evil}", "run": f"http://h/?q={evil}"},
        currency=evil,
        kept=replace(report.kept, checkpoint=found, sample=evil),
        sweep=report.sweep.model_copy(update={"sweep": view}),
    )  # fmt: skip


@pytest.mark.parametrize("evil", HOSTILE)
def test_nothing_of_a_user_is_markup(report: Report, evil: str) -> None:
    clean, dirty = Tags(render(report)), Tags(render(hostile(report, evil)))
    assert {tag for tag, _ in dirty.tags} <= {tag for tag, _ in clean.tags}
    assert len(dirty.all("script")) == len(clean.all("script")) == 3
    names = {name for _, attributes in dirty.tags for name in attributes}
    assert names <= {name for _, attributes in clean.tags for name in attributes}
    for anchor in dirty.all("a"):
        assert (anchor["href"] or "").startswith(("#", "http://"))
    data = figures(render(hostile(report, evil)))
    assert [strings for strings in map(_strings, data) if any("<" in one for one in strings)] == [
        strings
        for strings in map(_strings, data)
        if any(re.search("<(br|extra|/extra)>", s) for s in strings)
    ]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [one for item in value.values() for one in _strings(item)]
    return [one for item in value for one in _strings(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("evil", HOSTILE)
def test_figures_take_no_markup_but_ours(report: Report, evil: str) -> None:
    allowed = re.compile(r"<br>|<extra>|</extra>")
    for one in _strings(figures(render(hostile(report, evil)))):
        assert "<" not in allowed.sub("", one)


def test_elements_escape_what_they_are_given() -> None:
    assert el("p", "<b>", title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;</p>'
    assert el("td", el("b", "a"), None, class_=None, hidden=True) == "<td hidden><b>a</b></td>"
    assert link("javascript:alert(1)", "x") == "x"
    assert link("http://[", "x") == "x"
    assert 'href="https://a/?b=1&amp;c=2"' in link("https://a/?b=1&c=2", "x")
    with pytest.raises(ValueError, match="end tag"):
        program("a = '</SCRIPT >'")
