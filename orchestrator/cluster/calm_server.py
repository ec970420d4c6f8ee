"""uvicorn without its haste; alone: ``… -m orchestrator.cluster.calm_server HOST PORT PACKAGE.MODULE:APP``.

uvicorn looks ten times a second whether it is to end, which is most of what a server costs that waits.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

TICK_S = 0.5


class CalmServer(uvicorn.Server):
    """Looks twice a second whether it is to end."""

    async def main_loop(self) -> None:
        """Until it is to end."""
        while not await self.on_tick(0):
            await asyncio.sleep(TICK_S)


def main() -> int:
    """Serve until SIGTERM, and then end of it once the application has shut down; 3 where it cannot serve."""
    host, port, app = sys.argv[1:]
    server = CalmServer(uvicorn.Config(app, host=host, port=int(port), log_level="warning"))
    server.run()
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
