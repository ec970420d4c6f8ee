"""`python -m orchestrator.api`: the controller's process. The token comes from a file, never an argument."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvicorn

from orchestrator.api.app import create_app
from orchestrator.cluster.calm_server import CalmServer
from orchestrator.cluster.gateway import RayGateway
from orchestrator.control.config import ControllerConfig
from orchestrator.control.controller import Controller
from orchestrator.domain.admission import GRACE_S
from orchestrator.domain.rivalry import REST_S
from orchestrator.errors import OrchError, SetupError
from orchestrator.settings import Home, home, seconds


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM; 0 after an orderly stop."""
    options = _options(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        serve(options, home())
    except OrchError as error:
        logging.error("%s%s", error.message, f" ({error.remedy})" if error.remedy else "")
        return error.exit_code
    return 0


def serve(options: argparse.Namespace, state: Home) -> None:
    """Build the controller from the options and answer requests until told to stop."""
    config = ControllerConfig(
        home=state,
        url=options.url or f"http://{options.host}:{options.port}",
        store_uri=options.store or state.store.as_uri(),
        ray_address=options.ray_address,
        mlflow_url=options.mlflow,
        upgrade_rest_s=seconds("ORCH_UPGRADE_REST", REST_S),
        window_grace_s=seconds("ORCH_WINDOW_GRACE", GRACE_S),
    )
    gateway = RayGateway(options.ray_address, state.service_logs / "ray-gateway.log")
    gateway.start()
    controller = Controller(config, gateway)
    app = create_app(controller, _token(state.token_file), cluster_id=controller.store_id)
    server = CalmServer(
        uvicorn.Config(app, host=options.host, port=options.port, log_level="warning", access_log=False)
    )
    server.run()
    if not server.started:  # the log says why
        raise SetupError(f"cannot serve on {options.host}:{options.port}")


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise SetupError(f"the token file {path} cannot be read: {error}", remedy="run `orch up`") from error
    if len(token) < 16:
        raise SetupError(f"the token in {path} is too short", remedy="remove the file and run `orch up`")
    return token


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--url", default="", help="address under which agents reach this controller")
    parser.add_argument("--ray-address", required=True, help="IP:PORT of the Ray head")
    parser.add_argument(
        "--store", default="", help="URI of the object store; a folder of ORCH_HOME when unset"
    )
    parser.add_argument("--mlflow", default="", help="address of the MLflow server; none when unset")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
