"""Two machines with their own addresses: `up --listen` on one, the pasted `join` on the other."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, hosts, missing
from tests.stack import Stack, tiny_gpt
from tests.support import wait_until

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


class HostStack(Stack):
    """A state folder on one host: commands run inside the host's namespaces."""

    def __init__(self, host: Host, home: Path) -> None:
        home.mkdir(parents=True)
        (home / "user").mkdir()
        super().__init__(home)
        self.host = host

    def command(self, *arguments: str) -> list[str]:
        return self.host.enter(super().command(*arguments))

    def shell(self, line: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """A line as a user would paste it into a shell on this host."""
        path = f"{Path(super().command()[0]).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            self.host.enter(["bash", "-c", line]),
            env={**self.env, "PATH": path, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostStack, HostStack, str]]:
    """The box that is always on, the laptop, and the line to paste on the laptop."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(2) as (first, second):
        box, laptop = HostStack(first, folder / "box"), HostStack(second, folder / "laptop")
        try:
            printed = box.orch("up", "--listen", first.address, "--node", "gpu:cpus=1", timeout=180)
            (line,) = [text.strip() for text in printed.splitlines() if "orch join http" in text]
            yield box, laptop, line
        finally:
            laptop.orch("leave", timeout=90, code=None)
            box.orch("down", timeout=120, code=None)


def test_a_wrong_token_is_refused_with_a_clear_word(pair: tuple[HostStack, HostStack, str]) -> None:
    box, laptop, _ = pair
    url = json.loads((box.home / "client.json").read_text())["url"]
    refused = laptop.shell(f"orch join {url} --pool laptop", ORCH_TOKEN="not-the-token-at-all")
    assert refused.returncode == 6, refused.stdout + refused.stderr
    assert "token" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_token_is_in_no_argument_list(pair: tuple[HostStack, HostStack, str]) -> None:
    box, _, _ = pair
    token = (box.home / "token").read_text().strip()
    listed = subprocess.run(["bash", "-c", "cat /proc/[0-9]*/cmdline"], capture_output=True, check=False)
    assert listed.stdout
    assert token.encode() not in listed.stdout
    for log in box.home.rglob("*.log"):
        assert token not in log.read_text(errors="replace"), log


def test_a_run_is_handed_over_between_the_hosts(pair: tuple[HostStack, HostStack, str], text: Path) -> None:
    box, laptop, line = pair
    joined = laptop.shell(line)
    assert joined.returncode == 0, joined.stdout + joined.stderr + laptop.evidence()

    def both_ready() -> bool:
        nodes = {node["pool"]: node for node in box.json("nodes")}
        return set(nodes) == {"laptop", "gpu"} and all(n["state"] == "ready" for n in nodes.values())

    wait_until(both_ready, 60, box.evidence)
    run_id = box.submit(tiny_gpt("two-hosts", text, 800))
    wait_until(lambda: (box.json("show", run_id)["run"]["step"] or 0) >= 60, 90, box.evidence, every=0.5)
    box.orch("move", run_id, "--to", "gpu")

    def done() -> bool:
        state = box.json("show", run_id)["run"]["state"]
        assert state not in ("failed", "cancelled"), box.evidence() + laptop.evidence()
        return bool(state == "succeeded")

    wait_until(done, 120, box.evidence, every=0.5)
    detail = box.json("show", run_id)
    assert [a["pool"] for a in detail["attempts"]] == ["laptop", "gpu"]
    addresses = {node["pool"]: node["address"] for node in box.json("nodes")}
    assert addresses["laptop"] == laptop.host.address


def test_leave_ends_what_join_started(pair: tuple[HostStack, HostStack, str]) -> None:
    box, laptop, _ = pair
    laptop.orch("leave", timeout=90)
    wait_until(
        lambda: {n["pool"]: n["state"] for n in box.json("nodes")}.get("laptop") != "ready", 60, box.evidence
    )
    assert laptop.leftovers() == []
