"""Starts the agent in a session of its own and ends. Run as a script: standard library only, no site
packages.

    python -I -S detach.py WORK_DIR PROGRAM ARGUMENT...

Ray ends the children of its workers in several ways, and some reach a whole session. Only a process that
was forked twice, with a session made in between, belongs to nobody that Ray knows. The second fork happens
here and not in the worker, because forking a process with threads can leave locks held for ever in the
child.

Prints the agent's process id and writes WORK_DIR/agent.json before the agent's own code begins.
"""

import json
import os
import sys


def main() -> None:
    """Fork, tell who was born, and become the program in the child."""
    work_dir, argv = sys.argv[1], sys.argv[2:]
    if os.getpid() != os.getsid(0):
        os.setsid()
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    settle(work_dir)
    os.execv(argv[0], argv)


def settle(work_dir: str) -> None:
    """Become the agent of this folder in everything but the program: place, priority, files, descriptors."""
    os.chdir(work_dir)
    notes = _normal_priority()
    _tell(work_dir)
    _redirect(os.path.join(work_dir, "agent.err"), notes)


def _normal_priority() -> list[str]:
    """Undo what Ray does to its workers, where the system permits.

    Ray runs workers at nice 15 and marks them as the first to be killed when memory runs out. The agent
    must answer while the machine is busy and must outlive the program it watches, and the program should
    train at the speed that its placement promised.
    """
    notes = []
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except PermissionError:
        notes.append(f"runs at nice {os.getpriority(os.PRIO_PROCESS, 0)}: only root may lower it")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError as error:
        notes.append(f"oom_score_adj stays as it is: {error.strerror}")
    return notes


def _tell(work_dir: str) -> None:
    with open("/proc/self/stat") as file:
        text = file.read()
    ticks = int(text[text.rindex(")") + 2 :].split()[19])
    who = {"pid": os.getpid(), "create_time": ticks / os.sysconf("SC_CLK_TCK")}
    temporary = os.path.join(work_dir, ".agent.json")
    with open(temporary, "w") as file:
        json.dump(who, file)
    os.rename(temporary, os.path.join(work_dir, "agent.json"))


def _redirect(path: str, notes: list[str]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, 256)
    for note in notes:
        os.write(2, f"{note}\n".encode())


if __name__ == "__main__":
    main()
