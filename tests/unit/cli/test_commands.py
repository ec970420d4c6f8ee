"""Each command: what it asks the controller, what it prints, what it ends with."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import checkpoints, main
from orchestrator.cli.runs import resumed_spec
from orchestrator.domain.energy import EnergySource
from orchestrator.domain.states import RunState
from orchestrator.errors import ConflictError
from orchestrator.messages import CheckpointView, NodeView, PlanView, PointView, RunDetail, RunView, Submitted
from orchestrator.spec import CommandProgram, RunSpec, Variant
from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import (
    TOKEN,
    FakeController,
    attempt,
    checkpoint,
    detail,
    handed_over,
    unavailable,
    waiting,
)

SPEC = """\
name: small
trainer:
  max_steps: 100
placement:
  - pool: laptop
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SPEC)
    return file


# ------------------------------------------------------------------ submit and what changes runs


def test_submit_sends_the_spec_with_its_source(fake: FakeController, orch: Orch, spec_file: Path) -> None:
    result = orch("submit", str(spec_file), "--set", "trainer.max_steps=7", "--name", "other", "--key", "k")
    assert result.code == 0
    assert "accepted as run new00000 (other)" in result.out
    _, _, body = fake.requests[-1]
    assert (body["key"], body["source"], body["spec"]["name"]) == ("k", SPEC, "other")
    assert body["spec"]["trainer"]["max_steps"] == 7
    assert body["user"]


def test_submit_twice_with_one_key_is_one_run(orch: Orch, spec_file: Path) -> None:
    first = orch("submit", str(spec_file), "--key", "k", "--json")
    again = orch("submit", str(spec_file), "--key", "k")
    other = orch("submit", str(spec_file), "--json")
    assert Submitted.model_validate(first.json).created
    assert "used before: it is run new00000" in again.out
    assert other.json["run_id"] == "new00001"


def test_a_wrong_spec_is_told_with_its_places_and_nothing_is_sent(
    fake: FakeController, orch: Orch, spec_file: Path
) -> None:
    spec_file.write_text("name: small\ntrainer:\n  max_steps: -1\n  n_layers: 2\n")
    result = orch("submit", str(spec_file))
    assert result.code == 2
    assert f"{spec_file}:3:" in result.err
    assert f"{spec_file}:4:" in result.err
    assert fake.requests == []


def test_a_spec_that_is_not_there(orch: Orch, tmp_path: Path) -> None:
    result = orch("submit", str(tmp_path / "none.yaml"), "--json")
    assert result.code == 2
    problem = json.loads(result.err)
    assert problem["kind"] == "spec"
    assert problem["details"]["problems"][0]["file"] == str(tmp_path / "none.yaml")


def test_submit_and_follow_ends_with_the_outcome(fake: FakeController, orch: Orch, spec_file: Path) -> None:
    fake.add(handed_over("new00000", "small"))
    assert orch("submit", str(spec_file), "--follow").code == 0
    fake.add(detail("new00001", "small", state=RunState.FAILED, message="the program failed"))
    fake.logs["new00001", 1] = b"".join(b"line %d\n" % i for i in range(99))
    failed = orch("submit", str(spec_file), "-f")
    assert failed.code == 1
    assert "line 98" in failed.out
    assert "line 80" not in failed.out
    fake.add(detail("new00002", "small", state=RunState.CANCELLED))
    assert orch("submit", str(spec_file), "-f").code == 1


def test_cancel_and_move(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    assert "abcd2345 (demo) is cancelled" in orch("cancel", "demo").out
    assert "goes on in pool gpu" in orch("move", "demo", "--to", "gpu").out
    assert fake.requests[-1] == ("POST", "/v1/runs/demo/move", {"pool": "gpu"})
    assert RunView.model_validate(orch("move", "demo", "--to", "gpu", "--json").json).state == "stopping"


def test_move_needs_a_pool(fake: FakeController, orch: Orch) -> None:
    result = orch("move", "demo")
    assert result.code == 2
    assert "--to" in result.err


def test_resume_is_a_new_run_from_the_checkpoint(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over(trainer={"max_steps": 2000, "learning_rate": 3e-5, "min_lr": 1e-5}))
    result = orch("resume", "demo", "--at", "1000", "--set", "trainer.max_steps=5000", "--name", "longer")
    assert result.code == 0, result.err
    sent = RunSpec.model_validate(fake.requests[-1][2]["spec"])
    assert (sent.name, sent.resume_from) == ("longer", "abcd2345@1000")
    assert sent.trainer is not None
    assert (sent.trainer.max_steps, sent.trainer.learning_rate) == (5000, 3e-5)
    assert yaml.safe_load(fake.requests[-1][2]["source"])["resume_from"] == "abcd2345@1000"
    orch("resume", "demo")
    assert fake.requests[-1][2]["spec"]["resume_from"] == "abcd2345"


def test_resume_refuses_wrong_changes(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over())
    result = orch("resume", "demo", "--set", "trainer.max_step=1")
    assert result.code == 2
    assert "max_steps" in result.err
    assert all(method == "GET" for method, _, _ in fake.requests)


@pytest.mark.parametrize(
    "odd", ["0010", "1e-3", "yes", "null", "", "a: b", "# c", "é\n2", "~", "- x", "'", '"']
)
def test_resume_keeps_free_text_as_it_is(odd: str) -> None:
    program = CommandProgram(argv=["{python}", odd], env={"A": odd})
    old = RunSpec(name="odd", command=program, tags={"t": odd or "x"}, placement=[Variant(pool="a")])
    resumed, _ = resumed_spec(detail().model_copy(update={"spec": old}), None, [])
    assert resumed == old.model_copy(update={"resume_from": "abcd2345"})


# ------------------------------------------------------------------ listings


def test_ls_lists_newest_first_and_says_why_runs_wait(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over("first234", "a-run"))
    fake.add(waiting())
    lines = orch("ls").out.splitlines()
    assert lines[0].split() == ["RUN", "NAME", "STATE", "NODE", "STEP", "LOSS", "VAL", "CREATED"]
    assert lines[1].startswith("wait2345  night  queued     every GPU of pool gpu is in use")
    assert lines[2].split()[:7] == ["first234", "a-run", "succeeded", "gpu", "2000/2000", "1.760", "1.889"]


def test_ls_filters_and_counts(fake: FakeController, orch: Orch) -> None:
    fake.add(detail("aaaa2345"))
    fake.add(waiting())
    assert "aaaa2345" not in orch("ls", "--state", "queued").out
    assert "aaaa2345" not in orch("ls", "-n", "1").out
    assert "aaaa2345" in orch("ls", "--all").out
    assert "limit=10000" in fake.requests[-1][1]
    assert orch("ls", "--state", "nonsense").code == 2


def test_an_empty_list_says_what_to_do(orch: Orch) -> None:
    assert "orch submit" in orch("ls").out
    assert orch("ls", "--json").json == []


def test_every_listing_as_json_is_its_messages(fake: FakeController, orch: Orch, spec_file: Path) -> None:
    fake.add(handed_over())
    fake.checkpoints = [checkpoint()]
    fake.points = [PointView(key="train/loss", step=1, time_ms=2, value=3.0)]
    fake.nodes = [NodeView(name="laptop", pool="laptop", state="ready", cpus=2, memory=1 << 30)]
    assert [RunView.model_validate(run).id for run in orch("ls", "--json").json] == ["abcd2345"]
    assert RunDetail.model_validate(orch("show", "demo", "--json").json) == handed_over()
    assert [CheckpointView.model_validate(c) for c in orch("checkpoints", "demo", "--json").json] == [
        checkpoint()
    ]
    assert [NodeView.model_validate(node) for node in orch("nodes", "--json").json] == fake.nodes
    assert [PointView.model_validate(point) for point in orch("curve", "demo", "--json").json] == fake.points
    assert PlanView.model_validate(orch("plan", str(spec_file), "--json").json).ahead == 1
    assert list(orch("open", "demo", "--json").json) == ["run"]


def test_show_tells_the_whole_story(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over(message="the program finished"))
    text = orch("show", "demo").out
    for part in (
        "succeeded, the program finished",
        "2000/2000",
        "0-1000",
        "1000-2000",
        "RTX 4070 Ti",
        "moved",
        "attempt 2 runs on gpu from step 1000",
        "http://127.0.0.1:5000/",
        "by ada",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_show_tells_energy_and_cost(fake: FakeController, orch: Orch) -> None:
    used = {"energy_kwh": 1.234, "energy_source": EnergySource.ESTIMATED}
    told = detail(**used, cost=0.4, currency="EUR")
    attempts = [attempt(1, energy_kwh=0.034, energy_source=EnergySource.ESTIMATED), attempt(2)]
    fake.add(told.model_copy(update={"attempts": attempts}))
    text = orch("show", "demo").out
    assert re.search(r"energy +1\.23 kWh \(estimated\), 0\.40 EUR\n", text)
    assert re.search(r" 34\.00 Wh +running\n.* - +running\n", text)
    (listed,) = json.loads(orch("ls", "--json").out)
    assert (listed["energy_kwh"], listed["energy_source"]) == (1.234, "estimated")
    assert (listed["cost"], listed["currency"]) == (0.4, "EUR")


def test_show_without_attempts(fake: FakeController, orch: Orch) -> None:
    fake.add(waiting())
    text = orch("show", "night").out
    assert "queued, every GPU of pool gpu is in use" in text
    assert "ATTEMPT" not in text


def test_text_of_programs_cannot_steer_the_terminal(fake: FakeController, orch: Orch) -> None:
    fake.add(detail(state=RunState.FAILED, message="bad \x1b[2J\nnews\r [red]x[/red] \x07"))
    text = orch("show", "demo").out
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text


def test_checkpoints_show_what_retention_removed(fake: FakeController, orch: Orch) -> None:
    assert orch("checkpoints", "demo").code == 0
    fake.add(detail())
    fake.checkpoints = [checkpoint(1000, kept=False), checkpoint(2000)]
    lines = orch("checkpoints", "demo").out.splitlines()
    assert lines[1].endswith("removed")
    assert "9.3 MiB" in lines[2]
    assert not lines[2].endswith("removed")


def test_nodes_show_what_is_taken(fake: FakeController, orch: Orch) -> None:
    assert "orch up" in orch("nodes").out
    fake.nodes = [NodeView(name="box", pool="gpu", state="lost", cpus=16, gpus=2, gpus_used=1, runs=["demo"])]
    assert orch("nodes").out.splitlines()[1].split() == [
        "box",
        "gpu",
        "lost",
        "0/16",
        "1/2",
        "0",
        "B",
        "demo",
    ]


# ------------------------------------------------------------------ logs


def test_logs_print_bytes_as_they_are(
    fake: FakeController, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    raw = b"\xff\x00 half \xc3\nline without end"
    fake.add(detail(state=RunState.SUCCEEDED))
    fake.logs["abcd2345", 1] = raw
    monkeypatch.setenv("ORCH_URL", fake.url)
    monkeypatch.setenv("ORCH_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["orch", "logs", "demo", "--follow"])
    with pytest.raises(SystemExit):
        main.main()
    assert capfdbinary.readouterr().out == raw


def test_logs_of_a_rank(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    fake.logs = {("abcd2345", 1): b"of rank 0"}
    fake.rank_logs = {("abcd2345", 1, 1): b"one\ntwo\n" * 900}
    assert orch("logs", "demo").out == "of rank 0"
    assert orch("logs", "demo", "--rank", "1").out == "one\ntwo\n" * 900
    assert orch("logs", "demo", "--rank", "1", "--attempt", "1", "--tail", "1").out == "two\n"
    assert orch("logs", "demo", "--rank", "2").out == ""


def test_logs_tail(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over())
    fake.logs = {("abcd2345", 1): b"one\ntwo\n" * 900, ("abcd2345", 2): b"three\nfour\nfive"}
    assert orch("logs", "demo", "--tail", "2").out == "four\nfive"
    assert orch("logs", "demo", "--tail", "4").out == "two\nthree\nfour\nfive"
    assert orch("logs", "demo", "--tail", "0").out == ""
    assert orch("logs", "demo", "--attempt", "1", "--tail", "1", "-f").out == "two\n"
    assert orch("logs", "demo", "--attempt", "9").code == 3


# ------------------------------------------------------------------ looking into runs


def test_compare_needs_two_runs(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    assert orch("compare", "demo").code == 2
    assert orch("compare", "demo", "none").code == 3


def test_compare_shows_what_differs(fake: FakeController, orch: Orch) -> None:
    fake.add(detail("aaaa2345", "laptop", trainer={"n_layer": 4}))
    fake.add(detail("bbbb2345", "pc", trainer={"n_layer": 6}))
    text = orch("compare", "laptop", "pc").out
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["trainer.n_layer"] == ["4", "6", "+2"]
    assert "trainer.n_head" not in rows
    assert "compare-runs?runs=aaaa2345,bbbb2345" in text
    assert orch("compare", "laptop", "pc", "--json").json["names"] == ["laptop", "pc"]


def test_runs_with_one_name_are_told_apart_by_id(fake: FakeController, orch: Orch) -> None:
    fake.add(detail("aaaa2345", "same"))
    fake.add(detail("bbbb2345", "same"))
    text = orch("compare", "aaaa", "bbbb").out
    assert "aaaa2345  bbbb2345" in text
    assert "no setting differs" in text


def test_curve_draws_the_handover(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over())
    fake.points = [
        PointView(key="train/loss", step=s, time_ms=0, value=4 - s / 1000, attempt=1 + (s > 1000))
        for s in range(0, 2001, 10)
    ]
    text = orch("curve", "demo").out
    assert "┊" in text
    assert text.splitlines()[-1].split() == ["laptop", "gpu"]
    missing = orch("curve", "demo", "--key", "val/los")
    assert missing.code == 3
    assert "train/loss, val/loss" in missing.err


def test_plan_says_where_it_would_start(orch: Orch, fake: FakeController, spec_file: Path) -> None:
    spec_file.write_text(SPEC + "  - pool: gpu\n    gpus: 1\n")
    text = orch("plan", str(spec_file)).out
    assert "2 of 2 CPUs are in use by demo" in text
    assert "it would start on gpu (pool gpu); 1 queued run goes first" in text
    spec_file.write_text(SPEC)
    assert "it would wait" in orch("plan", str(spec_file)).out


def test_schema_is_written(orch: Orch, fake: FakeController, tmp_path: Path) -> None:
    assert "trainer" in orch("schema").json["properties"]
    file = tmp_path / "schema.json"
    assert orch("schema", "-o", str(file)).out == ""
    assert json.loads(file.read_text()) == orch("schema").json
    assert "space" in orch("schema", "--sweep").json["properties"]
    assert fake.requests == []


def test_open_prints_links(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    fake.add(waiting().model_copy(update={"links": {}}))
    assert "http://127.0.0.1:5000/#/experiments/1/runs/abcd23450000" in orch("open", "demo").out
    assert "no pages yet" in orch("open", "night").out


def test_sample_is_for_the_built_in_trainer(fake: FakeController, orch: Orch) -> None:
    program = RunSpec(name="demo", command=CommandProgram(argv=["true"]))
    fake.add(detail().model_copy(update={"spec": program}))
    assert orch("sample", "demo@100").code == ConflictError.exit_code
    assert orch("sample", "demo@").code == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [("demo", ("demo", None)), ("demo@100", ("demo", "100")), ("a@b@best", ("a@b", "best"))],
)
def test_places_of_checkpoints(text: str, place: tuple[str, str | None]) -> None:
    assert checkpoints.split_place(text) == place


# ------------------------------------------------------------------ errors


def test_errors_say_what_to_do(fake: FakeController, orch: Orch) -> None:
    result = orch("show", "nobody")
    assert result.code == 3
    assert result.out == ""
    assert result.err.splitlines() == [
        "error: no run is called nobody",
        "remedy: `orch ls --all` lists every run with its id",
    ]


def test_errors_cannot_steer_the_terminal(fake: FakeController, orch: Orch) -> None:
    fake.refusal = ConflictError("bad \x1b[2J\nsecond line [red]x[/red]", remedy="none\x07")
    assert orch("ls").err == "error: bad  [2J\nsecond line [red]x[/red]\nremedy: none \n"


def test_errors_are_json_where_json_was_asked_for(fake: FakeController, orch: Orch) -> None:
    result = orch("show", "nobody", "--json")
    assert (result.code, result.out) == (3, "")
    assert json.loads(result.err) == {
        "kind": "not-found",
        "message": "no run is called nobody",
        "remedy": "`orch ls --all` lists every run with its id",
        "details": {},
    }


@pytest.mark.parametrize(("kind", "code"), [("unavailable", 5), ("unauthorized", 6), ("store-full", 8)])
def test_exit_codes(fake: FakeController, orch: Orch, kind: str, code: int) -> None:
    from orchestrator.errors import from_kind

    fake.refusal = from_kind(kind, "no")
    assert orch("ls").code == code


def test_no_controller_known(orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_URL")
    result = orch("ls")
    assert result.code == 5
    assert "orch up" in result.err


def test_a_mistake_of_ours_is_short_unless_debugging(
    fake: FakeController, orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(fake, "answer", lambda *_: [])
    monkeypatch.setattr("orchestrator.cli.views.render.table", broken)
    fake.add(detail())
    monkeypatch.setattr(fake, "answer", lambda *_: [detail().run])
    result = orch("ls")
    assert result.code == 1
    assert "ZeroDivisionError: division by zero" in result.err
    assert "ORCH_DEBUG=1" in result.err
    assert "Traceback" not in result.err
    monkeypatch.setenv("ORCH_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["orch", "ls"])
    with pytest.raises(ZeroDivisionError):
        main.main()


def test_version_and_help(orch: Orch) -> None:
    assert orch("--version").out.startswith("orch ")
    text = orch("--help").out
    for word in ("Runs", "Cluster", "Specs", "130 stopped by Ctrl-C"):
        assert word in " ".join(text.split())


def test_follow_as_json_is_one_document(fake: FakeController, orch: Orch) -> None:
    fake.add(handed_over())
    result = orch("follow", "demo", "--json")
    assert RunDetail.model_validate(result.json) == handed_over()
    assert "attempt 1 runs on laptop" in result.err


def test_completion_offers_ids_and_names_and_never_fails(fake: FakeController, orch: Orch) -> None:
    from orchestrator.cli.common import complete_run

    fake.add(detail())
    orch("ls")
    assert [word for word, _ in complete_run("")] == ["demo", "abcd2345"]
    assert [word for word, _ in complete_run("de")] == ["demo"]
    fake.failures = [unavailable]
    assert complete_run("") == []
