"""Plotly's program, as its Python package carries it. The only module that imports it."""

from __future__ import annotations

from functools import cache

from orchestrator.errors import SetupError


@cache
def plotly_js() -> str:
    """The whole library as JavaScript, about 5 MB; SetupError where the package is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SetupError(
            "reports need the package plotly on the controller's machine",
            remedy="install orch there with its extra: pip install 'orch[server]'",
        ) from error
    return str(get_plotlyjs())
