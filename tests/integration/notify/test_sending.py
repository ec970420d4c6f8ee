"""Real messages through Apprise to real servers on loopback."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import SetupError, SpecError
from orchestrator.notify.sender import reason
from orchestrator.notify.sending import Message, Sender
from tests.receivers import Webhook, mail_server, serving

MESSAGE = Message("demo: failed — at step 9", "two lines\nMLflow: http://x/#/a?b=c", "failure")
SECRET = "s3cr3t-token"


@pytest.fixture
def sender() -> Sender:
    return Sender(20.0)


def test_a_webhook(sender: Sender) -> None:
    with serving() as hook:
        sent = sender.send(hook.url(f"hooks/{SECRET}"), MESSAGE)
    assert (sent.arrived, sent.text) == (True, "")
    assert hook.paths == [f"/hooks/{SECRET}"]
    (body,) = hook.bodies
    assert (body["title"], body["message"], body["type"]) == (MESSAGE.title, MESSAGE.body, "failure")


def test_ntfy(sender: Sender) -> None:
    with serving() as hook:
        assert sender.send(hook.url("alerts", "ntfy"), MESSAGE).arrived
    (body,) = hook.bodies
    assert (body["topic"], body["title"], body["message"]) == ("alerts", MESSAGE.title, MESSAGE.body)


def test_what_takes_slack_messages(sender: Sender) -> None:
    """Mattermost's and others' webhooks take Slack's format; Slack itself cannot be reached here."""
    with serving() as hook:
        assert sender.send(hook.url("abcdefgh12345678", "mmost"), MESSAGE).arrived
        assert sender.send(
            hook.url("services/A/B?:message=text&:title=&:version=&:type=&:attachments="), MESSAGE
        )
    told, mapped = hook.bodies
    assert MESSAGE.title in told["text"]
    assert MESSAGE.body in told["text"]
    assert mapped == {"text": MESSAGE.body}
    sender.check("https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")


def test_a_mail(sender: Sender) -> None:
    with mail_server() as box:
        url = f"mailto://127.0.0.1:{box.port}/ada@example.org?from=orch@example.org"
        assert sender.send(url, MESSAGE).arrived
    (mail,) = box.mails
    assert (mail["subject"], mail["to"]) == (MESSAGE.title, "ada@example.org")
    part = mail.get_body(("plain", "html"))
    assert part is not None
    text = part.get_content()
    assert "two lines" in text
    assert "MLflow: http://x/#/a?b=c" in text


def test_a_desktop(sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the program that Linux desktops have; this one writes down what it is told."""
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/told\n')
    program.chmod(0o755)
    with pytest.raises(SpecError, match="no desktop"):
        sender.check("desktop://")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sender.check("desktop://")
    assert sender.send("desktop://", MESSAGE).arrived
    assert (tmp_path / "told").read_text() == f"--app-name=orch|--|{MESSAGE.title}|{MESSAGE.body}|"


@pytest.mark.parametrize(
    ("status", "text"), [(404, "HTTP status 404 (Not Found)"), (500, "HTTP status 500"), (418, "418")]
)
def test_a_refusal_is_told_without_the_address(sender: Sender, status: int, text: str) -> None:
    with serving(Webhook(status=status)) as hook:
        sent = sender.send(hook.url(SECRET), MESSAGE)
    assert not sent.arrived
    assert text in sent.text
    assert SECRET not in sent.text


def test_nobody_listens(sender: Sender) -> None:
    sent = sender.send(Webhook().url(SECRET), MESSAGE)
    assert (sent.arrived, sent.text) == (False, "nobody listens there")
    sent = sender.send(f"mailto://127.0.0.1:{Webhook().port}/a@example.org?from=b@example.org", MESSAGE)
    assert (sent.arrived, sent.text) == (False, "nobody listens there")


def test_a_service_that_never_ends_its_answer_is_left() -> None:
    """One byte now and then defeats every timeout between two bytes, but not the limit on the whole."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                for at in range(600):
                    if stop.wait(0.1):
                        return
                    try:
                        connection.sendall(b"x-%d: y\r\n" % (at % 50))
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        sent = Sender(3.0).send(f"json://127.0.0.1:{port}/", MESSAGE)
        took = time.monotonic() - began
        stop.set()
        thread.join()
    assert (sent.arrived, sent.text) == (False, "it did not answer within 3 s")
    assert took < 12


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"foo://{SECRET}", "Apprise knows no service foo://"),
        (f"https://example.org/{SECRET}", "for a webhook write jsons:// instead of https://"),
        (f"http://example.org/{SECRET}", "for a webhook write json:// instead of http://"),
        (f"slack://{SECRET}", "it is not a whole slack:// address"),
        ("gnome://", "gnome:// needs software that is not installed"),
        (SECRET, "begins with the name of a service"),
        (f"{SECRET}://x", "begins with the name of a service"),
    ],
)
def test_addresses_that_apprise_does_not_understand(sender: Sender, url: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        sender.check(url)
    assert text in caught.value.message
    assert SECRET not in f"{caught.value} {caught.value.remedy}"


def test_without_apprise(sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apprise.py").write_text("raise ImportError('no module')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SetupError, match="not installed") as caught:
        sender.check("ntfy://x")
    assert "orch[server]" in str(caught.value.remedy)
    assert "not installed" in sender.send("ntfy://x", MESSAGE).text


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("Socket Exception: HTTPSConnectionPool(...): [SSL: CERTIFICATE_VERIFY_FAILED]", "TLS"),
        (
            "Socket Exception: Failed to resolve 'x' ([Errno -2] Name or service not known)",
            "no such computer",
        ),
        ("Socket Exception: (535, b'5.7.8 Username and Password not accepted')", "user or the password"),
        ("Socket Exception: Read timed out. (read timeout=4.0)", "in time"),
        ("something new about hunter2", "Apprise does not say why"),
    ],
)
def test_reasons(told: str, text: str) -> None:
    assert text in reason(told)
    assert "hunter2" not in reason(told)
