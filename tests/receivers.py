"""Services that notifications go to: a webhook, and a mail server, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support import free_port


@dataclass
class Webhook:
    """What has been posted, in order."""

    port: int = field(default_factory=free_port)
    status: int = 200
    paths: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    hang: bool = False
    """Whether to take requests and answer none, until :attr:`let_go`."""
    let_go: threading.Event = field(default_factory=threading.Event)
    taken: int = 0

    def url(self, path: str = "", scheme: str = "json") -> str:
        """Its address."""
        return f"{scheme}://127.0.0.1:{self.port}/{path}"

    @property
    def titles(self) -> list[str]:
        """Titles of what was posted in Apprise's own form."""
        return [body["title"] for body in self.bodies]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hook: Webhook


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        hook = self.server.hook
        data = self.rfile.read(int(self.headers["content-length"]))
        hook.taken += 1
        if hook.hang:
            hook.let_go.wait(60)
            self.close_connection = True
            return
        if hook.status == 200:
            hook.paths.append(self.path)
            hook.bodies.append(json.loads(data))
        self.send_response(hook.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(hook: Webhook | None = None) -> Iterator[Webhook]:
    """Serve the webhook within the block; it may be served again afterwards."""
    hook = hook or Webhook()
    server = _Server(("127.0.0.1", hook.port), _Handler)
    server.hook = hook
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hook
    finally:
        hook.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Mailbox:
    """Mails that have arrived."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Called by the mail server."""
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 kept"


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """A mail server that takes everything."""
    box = Mailbox(free_port())
    server = Controller(box, hostname="127.0.0.1", port=box.port)
    server.start()
    try:
        yield box
    finally:
        server.stop()
