"""The client against a controller that answers, refuses, breaks off and restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.client import Away, Client, LogPlace
from orchestrator.domain.states import RunState
from orchestrator.endpoint import endpoint
from orchestrator.errors import (
    ConflictError,
    NotFoundError,
    OrchError,
    Problem,
    SpecError,
    UnauthorizedError,
    UnavailableError,
)
from orchestrator.messages import PointView, RunDetail, SubmitRequest
from orchestrator.settings import Home
from tests.clocks import TurnedClock
from tests.support import free_port
from tests.unit.cli.fake import (
    TOKEN,
    FakeController,
    Handler,
    break_connection,
    checkpoint,
    detail,
    handed_over,
    spec,
    unavailable,
)


def request(key: str = "k1") -> SubmitRequest:
    return SubmitRequest(spec=spec(), key=key, source="name: demo", user="ada")


# ------------------------------------------------------------------ routes


def test_every_route_answers_models(fake: FakeController, client: Client) -> None:
    fake.add(detail())
    fake.checkpoints = [checkpoint()]
    fake.points = [PointView(key=key, step=1, time_ms=2, value=3.0) for key in ("train/loss", "lr")]
    assert client.health().cluster_id == "c1"
    assert [run.id for run in client.runs()] == ["abcd2345"]
    assert client.run("demo").run.id == "abcd2345"
    assert client.checkpoints("abcd")[0].step == 1000
    assert [point.key for point in client.points("demo", ["lr"])] == ["lr"]
    assert len(client.points("demo")) == 2
    assert client.move("demo", "gpu").state == RunState.STOPPING
    assert client.cancel("demo").state == RunState.CANCELLED
    assert client.plan(request()).lines[1].node == "gpu"
    assert client.nodes() == []
    assert client.links(["a", "b"])["compare"].endswith("runs=a,b")
    assert client.shutdown() == 1


def test_lists_pass_on_filters(fake: FakeController, client: Client) -> None:
    fake.add(detail())
    client.runs([RunState.FAILED, RunState.RUNNING], experiment="night shift", limit=7)
    assert fake.requests[-1][1] == "/v1/runs?state=failed&state=running&experiment=night+shift&limit=7"


def test_a_reference_cannot_leave_its_place_in_the_path(fake: FakeController, client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.run("../nodes")
    assert fake.requests[-1][1] == "/v1/runs/..%2Fnodes"


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFoundError("no run is called x", remedy="look"), NotFoundError),
        (ConflictError("the key belongs to another run"), ConflictError),
        (UnavailableError("starting"), UnavailableError),
    ],
)
def test_refusals_come_back_as_the_error_they_were(
    fake: FakeController, client: Client, error: OrchError, kind: type[OrchError]
) -> None:
    fake.refusal = error
    with pytest.raises(kind) as caught:
        client.runs()
    assert (caught.value.message, caught.value.remedy) == (error.message, error.remedy)


def test_problems_of_a_spec_keep_their_places(fake: FakeController, client: Client) -> None:
    problems = [Problem("a.yaml", 3, 5, "name", "missing"), Problem("a.yaml", 4, 1, "", "unknown key")]
    fake.refusal = SpecError(problems)
    with pytest.raises(SpecError) as caught:
        client.plan(request())
    assert caught.value.problems == problems


def test_a_wrong_token_is_unauthorized(fake: FakeController) -> None:
    with pytest.raises(UnauthorizedError), Client(fake.url, "wrong") as client:
        client.runs()


def test_nobody_there_says_how_to_start() -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(UnavailableError) as caught:
        client.runs()
    assert caught.value.message == f"the controller at http://127.0.0.1:{port} does not answer"
    assert "orch up" in (caught.value.remedy or "")


def test_something_else_on_the_port_is_said(fake: FakeController, client: Client) -> None:
    def page(handler: Handler) -> None:
        handler.send_response(404)
        handler.send_header("content-length", "5")
        handler.end_headers()
        handler.wfile.write(b"<htm>")

    fake.failures = [page]
    with pytest.raises(UnavailableError, match="HTTP status 404"):
        client.runs()


def test_answers_of_another_version_are_said(fake: FakeController, client: Client) -> None:
    fake.failures = [lambda handler: handler.reply(200, [{"id": "x", "news": 1}])]
    with pytest.raises(OrchError, match="does not understand") as caught:
        client.runs()
    assert "same version" in (caught.value.remedy or "")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UnavailableError, match="not an address"):
        Client(url)


# ------------------------------------------------------------------ submit


def test_a_lost_answer_is_asked_for_again_with_the_same_key(fake: FakeController, quick: Client) -> None:
    fake.failures = [break_connection, unavailable]
    assert quick.submit(request()).created
    assert [body["key"] for _, _, body in fake.requests] == ["k1"] * 3


def test_a_lost_answer_that_had_arrived_is_the_same_run(fake: FakeController, quick: Client) -> None:
    def accept_then_break(handler: Handler) -> None:
        fake.answer("POST", "/v1/runs", {}, request().model_dump(mode="json"))
        break_connection(handler)

    fake.failures = [accept_then_break]
    assert not quick.submit(request()).created


def test_a_submit_that_stays_unsure_names_its_key(fake: FakeController, quick: Client) -> None:
    fake.failures = [break_connection] * 100
    with pytest.raises(UnavailableError, match="not known") as caught:
        quick.submit(request("night-17"))
    assert "night-17" in (caught.value.remedy or "")
    assert 20 < len(fake.requests) < 40


def test_a_controller_that_is_not_there_is_said_at_once(clock: TurnedClock) -> None:
    with Client(f"http://127.0.0.1:{free_port()}", clock=clock) as client, pytest.raises(UnavailableError):
        client.submit(request())
    assert clock.at == 0


# ------------------------------------------------------------------ following


def test_following_ends_with_the_final_state(fake: FakeController, quick: Client) -> None:
    fake.add(detail(step=1), detail(step=2), handed_over())
    seen = list(quick.follow("demo"))
    assert [update.run.step for update in seen if isinstance(update, RunDetail)] == [1, 2, 2000]


def test_following_goes_on_when_the_controller_restarts(fake: FakeController, quick: Client) -> None:
    fake.add(detail(step=1), handed_over())
    updates = quick.follow("demo")
    next(updates)
    fake.failures = [break_connection, unavailable]
    seen = list(updates)
    assert [type(update) for update in seen] == [Away, Away, RunDetail]
    assert [update.seconds for update in seen if isinstance(update, Away)] == [1.0, 2.0]


def test_following_gives_up_after_its_patience(fake: FakeController, quick: Client) -> None:
    fake.add(detail())
    updates = quick.follow("demo", patience_s=5)
    next(updates)
    fake.failures = [unavailable] * 100
    with pytest.raises(UnavailableError):
        list(updates)
    assert 90 < len(fake.failures) < 100


def test_the_first_look_is_not_repeated(fake: FakeController, quick: Client) -> None:
    fake.failures = [unavailable]
    with pytest.raises(UnavailableError):
        next(quick.follow("demo"))
    with pytest.raises(NotFoundError):
        next(quick.follow("demo"))


# ------------------------------------------------------------------ output


def test_output_of_all_attempts_in_order(fake: FakeController, quick: Client) -> None:
    fake.add(handed_over())
    fake.logs = {("abcd2345", 1): b"a" * 2500, ("abcd2345", 2): b"b" * 1500}
    assert b"".join(quick.stream_logs("demo")) == b"a" * 2500 + b"b" * 1500
    assert b"".join(quick.stream_logs("demo", 2)) == b"b" * 1500
    assert b"".join(quick.stream_logs("demo", 1, follow=True)) == b"a" * 2500


def test_an_attempt_that_is_not_there(fake: FakeController, quick: Client) -> None:
    fake.add(detail())
    with pytest.raises(NotFoundError):
        list(quick.stream_logs("demo", 7))


def test_output_is_neither_lost_nor_repeated_across_a_restart(fake: FakeController, quick: Client) -> None:
    fake.add(handed_over())
    fake.logs = {("abcd2345", 1): bytes(range(250)) * 10, ("abcd2345", 2): b"end"}
    notices: list[Away] = []
    pieces = []
    for piece in quick.stream_logs("demo", follow=True, notice=notices.append):
        pieces.append(piece)
        if len(pieces) == 2:
            fake.failures = [break_connection, unavailable]
    assert b"".join(pieces) == bytes(range(250)) * 10 + b"end"
    assert len(notices) == 2


def test_following_output_gives_up_after_its_patience(fake: FakeController, quick: Client) -> None:
    fake.add(detail())
    pieces = quick.stream_logs("demo", follow=True, patience_s=5)
    fake.failures = [lambda handler: handler.reply(200, detail()), *[unavailable] * 100]
    with pytest.raises(UnavailableError):
        list(pieces)
    assert 90 < len(fake.failures) < 100


def test_output_of_a_run_that_waits_begins_with_its_first_attempt(
    fake: FakeController, quick: Client
) -> None:
    waiting = detail(state=RunState.QUEUED, attempt=0)
    fake.add(waiting)
    assert list(quick.stream_logs("demo")) == []
    fake.logs = {("abcd2345", 1): b"one", ("abcd2345", 2): b"two"}
    pieces = quick.stream_logs("demo", follow=True)

    def start(handler: Handler) -> None:
        fake.runs["abcd2345"] = [handed_over()]
        unavailable(handler)

    fake.failures = [lambda handler: handler.reply(200, waiting), start]
    assert b"".join(pieces) == b"onetwo"


def test_a_second_reading_goes_on_where_the_first_ended(fake: FakeController, quick: Client) -> None:
    fake.add(handed_over())
    fake.logs = {("abcd2345", 1): b"one", ("abcd2345", 2): b"two"}
    place = LogPlace()
    assert b"".join(quick.stream_logs("demo", place=place)) == b"onetwo"
    fake.logs["abcd2345", 2] += b" more"
    assert b"".join(quick.stream_logs("demo", place=place)) == b" more"


# ------------------------------------------------------------------ where the controller is


def test_settings_come_from_the_environment_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.client_file.write_text('{"url": "http://127.0.0.1:9"}')
    home.token_file.write_text("in-file\n")
    (tmp_path / "other").write_text(" other \n")
    assert endpoint(home, {}) == ("http://127.0.0.1:9", "in-file")
    assert endpoint(home, {"ORCH_URL": "http://h:1", "ORCH_TOKEN": "t"}) == ("http://h:1", "t")
    assert endpoint(home, {"ORCH_TOKEN_FILE": str(tmp_path / "other")})[1] == "other"


def test_without_settings_there_is_no_controller(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        endpoint(Home(tmp_path), {})
    assert "orch up" in (caught.value.remedy or "")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '"x"', "{"])
def test_a_damaged_settings_file_is_said(tmp_path: Path, text: str) -> None:
    Home(tmp_path).client_file.write_text(text)
    with pytest.raises(UnavailableError, match=r"client\.json cannot be read"):
        endpoint(Home(tmp_path), {})


def test_a_token_file_that_is_missing_is_said(tmp_path: Path) -> None:
    Home(tmp_path).client_file.write_text('{"url": "http://127.0.0.1:9"}')
    with pytest.raises(UnauthorizedError, match="cannot be read"):
        endpoint(Home(tmp_path), {"ORCH_TOKEN_FILE": str(tmp_path / "none")})


def test_the_token_is_in_no_error(fake: FakeController) -> None:
    fake.failures = [break_connection]
    with Client(fake.url, TOKEN) as client, pytest.raises(UnavailableError) as caught:
        client.runs()
    chain = [caught.value, caught.value.__cause__]
    assert not any(TOKEN in f"{e} {e!r}" for e in chain)
