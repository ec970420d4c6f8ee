"""Stands in for the process that holds the Ray driver: answers by a script in the environment.

FAKE_DRIVER: `fine`, `refuse` (cannot connect), `mute` (never connects), `die` (ends at the first request).
The operation `actors` hangs for ever, also for later requests, where the actor `hang` was probed before.
"""

import json
import os
import sys
import threading
import time

lock = threading.Lock()
hung = threading.Event()


def say(message: dict) -> None:
    with lock:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def answer(request: dict) -> None:
    number, operation = request["id"], request["op"]
    if operation == "probe" and request["name"] == "slow":
        time.sleep(4.0)
    if operation == "probe" and request["name"] == "never":
        return
    if operation == "probe":
        say({"id": number, "result": {"name": request["name"], "state": "alive", "agent_alive": True}})
    elif operation == "kill":
        say({"id": number, "error": {"kind": "not-found", "message": "no such actor"}})
    elif operation == "launch":
        say({"id": number, "result": {"created": request["job"] != "" and request["ray_id"] == "n1"}})
    elif operation == "nodes":
        node = {"ray_id": str(os.getpid()), "name": "a", "pool": "p", "alive": True, "address": "127.0.0.2"}
        say({"id": number, "result": [{**node, "cpus": 1.0, "gpus": 0.0, "memory": 1}]})


def main() -> None:
    mode = os.environ["FAKE_DRIVER"]
    if mode == "refuse":
        say({"event": "failed", "message": "nothing answers at 127.0.0.2:1"})
        sys.exit(3)
    if mode != "mute":
        say({"event": "ready"})
    for line in sys.stdin:
        request = json.loads(line)
        if mode == "die":
            sys.exit(3)
        if request["op"] == "probe" and request["name"] == "hang":
            hung.set()
        if not hung.is_set():
            threading.Thread(target=answer, args=(request,), daemon=True).start()


main()
