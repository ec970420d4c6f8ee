"""The page: one HTML document that holds everything it needs and asks nobody for anything.

Its content security policy allows the two scripts that are written into it, by their SHA-256, and no request:
were there a way to put a script or an address into a name, a browser would still not follow it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files

from orchestrator.analysis.report.data import Report
from orchestrator.analysis.report.figure import Figure
from orchestrator.analysis.report.html import Html, data_block, el, join, program
from orchestrator.analysis.report.plotlyjs import plotly_js
from orchestrator.analysis.report.sections import Section, header, sections
from orchestrator.analysis.report.words import instant


def render(report: Report) -> str:
    """The whole document."""
    parts = sections(report)
    figures = [figure for part in parts for figure in part.figures]
    scripts = (plotly_js(), _asset("report.js"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{report.title} – report"),
        el("style", Html(_asset("report.css"))),
    )
    main = el("main", header(report, parts), *(_section(part) for part in parts), _footer(report))
    noscript = el("noscript", el("p", "The figures need JavaScript; the tables do not."))
    body = el("body", noscript, main, _figures(figures), *map(program, scripts))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _section(part: Section) -> Html:
    note = el("p", part.note, class_="note") if part.note else None
    return el("section", el("h2", part.title), note, part.body, id=part.id)


def _figures(figures: Iterable[Figure]) -> Html:
    return data_block("figures", [figure.as_json() for figure in figures])


def _footer(report: Report) -> Html:
    program = f"orch {report.version}".strip()
    made = f"Made by {program} on {instant(report.at, report.zone)} ({_zone(report)})."
    return el("footer", join(made, " This page holds all of its data and loads nothing from anywhere."))


def _zone(report: Report) -> str:
    return report.at.astimezone(report.zone).tzname() or "local time"


def _policy(scripts: Sequence[str]) -> str:
    """Plotly's parallel coordinates make functions from text for the GPU, hence `unsafe-eval`."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": f"{hashes} 'unsafe-eval'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
