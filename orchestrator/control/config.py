"""What a controller is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.admission import GRACE_S
from orchestrator.domain.rivalry import REST_S
from orchestrator.settings import Home


@dataclass(frozen=True)
class ControllerConfig:
    """Addresses as machines of the cluster see them. Holds no secret."""

    home: Home
    url: str
    """Where agents reach this controller."""
    store_uri: str
    ray_address: str
    mlflow_url: str
    """Empty where there is no MLflow."""
    upgrade_rest_s: float = REST_S
    """How long an attempt stays where it began before it may be moved to a better placement."""
    window_grace_s: float = GRACE_S
    """Time to save before the hours of a run end."""
