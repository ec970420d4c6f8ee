"""``… -m orchestrator.cluster.mlflow_main ROOT HOST PORT``: prepare MLflow's database, become its server."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from orchestrator.cluster.mlflow_command import initialise, mlflow_command
from orchestrator.errors import OrchError


def main() -> int:
    """Does not return where the server could be started."""
    root, host, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        initialise(root)
        argv, env = mlflow_command(root, host, port)
        os.execve(argv[0], argv, {**os.environ, **env})
    except OrchError as error:
        logging.error("%s%s", error.message, f" ({error.remedy})" if error.remedy else "")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
