"""The process that sends one notification: `python -m orchestrator.notify.sender`, the job on standard input.

The only module that imports Apprise. It is a process of its own, so that a service that never answers can be
ended, whatever it does, and so that Apprise's log, which quotes addresses, goes nowhere: what is answered on
standard output is made of the words below and nothing else.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from http import HTTPStatus
from typing import Any, Final

DESKTOP: Final = "desktop://"
_DESKTOPS: Final = ("macosx://", "windows://", "dbus://", "gnome://")
NO_APPRISE: Final = "Apprise is not installed where the controller runs"
_REASONS: Final = (
    (r"connection refused", "nobody listens there"),
    (r"name or service not known|nodename nor servname|name resolution|getaddrinfo", "no such computer"),
    (r"certificate|ssl\w*error|\[ssl", "its TLS certificate is not accepted"),
    (r"no route to host|network is unreachable", "there is no way to that computer"),
    (r"timed out|timeout", "it did not answer in time"),
    (r"authentication|\b535\b", "it refuses the user or the password"),
    (r"recipient|\b55[0-4]\b", "it refuses the recipient"),
    (
        r"reset by peer|disconnected|connection aborted|unexpectedly closed|broken pipe",
        "the connection broke",
    ),
)


def main() -> int:
    """Do the job; the answer is one line of JSON."""
    job = json.load(sys.stdin)
    try:
        import apprise
    except ImportError:
        answer = (False, NO_APPRISE)
    else:
        answer = _check(apprise, job["url"]) if job.get("check") else _send(apprise, job)
    json.dump({"ok": answer[0], "text": answer[1]}, sys.stdout)
    return 0


class _Words(logging.Handler):
    """Keeps what Apprise says of failures, to find known words in it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        line = record.getMessage()
        if record.levelno >= logging.WARNING or "Exception" in line:
            self.text += line + "\n"


def _listen() -> _Words:
    words, log = _Words(), logging.getLogger("apprise")
    log.handlers, log.propagate = [words], False
    log.setLevel(logging.DEBUG)
    return words


def _check(apprise: Any, url: str) -> tuple[bool, str]:
    """Whether Apprise understands an address, and if not, why."""
    _listen()
    if url == DESKTOP:
        found = bool(_desktop(apprise) or shutil.which("notify-send"))
        return found, "" if found else "this machine has no desktop that can be told"
    scheme = re.match(r"([a-z][a-z0-9+]{1,20})://", url, re.IGNORECASE | re.ASCII)
    if apprise.Apprise.instantiate(url) is not None:
        return True, ""
    if scheme is None:
        return False, "an address begins with the name of a service and ://"
    name = scheme[1].lower()
    known = next(
        (one for one in apprise.Apprise().details(show_disabled=True)["schemas"] if _of(one, name)), None
    )
    if name in ("http", "https"):
        return False, f"for a webhook write json{name[4:]}:// instead of {name}://"
    if known is None:
        return False, f"Apprise knows no service {name}://"
    if not known["enabled"]:
        return False, f"{name}:// needs software that is not installed where the controller runs"
    return False, f"it is not a whole {name}:// address"


def _of(service: dict[str, Any], scheme: str) -> bool:
    return scheme in (*(service["protocols"] or ()), *(service["secure_protocols"] or ()))


def _send(apprise: Any, job: dict[str, str]) -> tuple[bool, str]:
    """Whether it arrived, and if not, why."""
    words = _listen()
    target = _desktop(apprise) if job["url"] == DESKTOP else apprise.Apprise.instantiate(job["url"])
    if target is None and job["url"] == DESKTOP:
        return _notify_send(job)
    if target is None:
        return False, "Apprise does not understand the address"
    sent = target.notify(
        job["body"], title=job["title"], notify_type=job["type"], body_format=apprise.NotifyFormat.TEXT
    )
    return (True, "") if sent else (False, reason(words.text))


def _desktop(apprise: Any) -> Any:
    for url in _DESKTOPS:
        found = apprise.Apprise.instantiate(url)
        if found is not None:
            return found
    return None


def _notify_send(job: dict[str, str]) -> tuple[bool, str]:
    """Linux desktops, without Python packages for D-Bus."""
    program = shutil.which("notify-send")
    if program is None:
        return False, "this machine has no desktop that can be told"
    done = subprocess.run([program, "--app-name=orch", "--", job["title"], job["body"]], capture_output=True)
    return done.returncode == 0, "" if done.returncode == 0 else "the desktop does not answer"


def reason(told: str) -> str:
    """Why something did not arrive, from what Apprise told about it, in words of ours."""
    status = re.search(r"\berror=(\d{3})\b", told)
    if status is not None:
        code = int(status[1])
        known = {one.value: one.phrase for one in HTTPStatus}
        return f"it answered with HTTP status {code}" + (f" ({known[code]})" if code in known else "")
    found = (text for pattern, text in _REASONS if re.search(pattern, told, re.IGNORECASE))
    return next(found, "it refuses, and Apprise does not say why")


if __name__ == "__main__":
    sys.exit(main())
