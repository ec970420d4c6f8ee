"""``python -m orchestrator.agent WORK_DIR``: supervises one attempt. Started by
:mod:`orchestrator.agent.launch`."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.agent.attempt import Attempt
from orchestrator.agent.workdir import WorkDir


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": record.name.rpartition(".")[2],
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def main() -> int:
    """Run the attempt whose folder is the only argument."""
    folder = WorkDir(Path(sys.argv[1]).absolute())
    handler = logging.FileHandler(folder.agent_log)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    Attempt(folder, Path(os.environ["ORCH_NODE_HOME"]), os.environ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
