"""How Ray's head and nodes are started, and with which settings.

``ray start`` without ``--block`` starts Ray's daemons and ends; with it, a process of 130 MB would stay only
to watch them, which the supervisor does itself. What each setting is for stands beside it. Memory (PSS, Ray
2.60): head 183 MB, node 145 MB; Ray's own defaults give 615 and 184.

What listens where: Ray's head (GCS), raylets, object managers and metrics agents listen on all interfaces,
whatever address they are given; token authentication guards them. The runtime-environment agents listen on
the node's own address, which is a loopback address unless other machines take part.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from orchestrator.agent.identity import boot_id
from orchestrator.cluster.config import NodeConfig, StackConfig, temp_dir

NOW_MS: Final = "{now_ms}"
"""Stands for the time of the start, in ms since 1970."""
FREE_PORT: Final = "{free_port}"
"""Stands for a port that is free when the service starts."""
DASHBOARD: Final = "ray/dashboard/dashboard.py"
"""Part of the command of the dashboard's server, which runs even without a dashboard."""

_OBJECT_STORE_BYTES: Final = 80_000_000
"""Nothing of ours goes through Ray's object store; this is near the smallest that Ray accepts."""
_LOG_BYTES: Final = 2_000_000

_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_START_HOOK": "orchestrator.cluster.ray_start_hook.apply",
    "RAY_enable_metrics_collection": "false",
    "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": "1",
    # Ray would kill actors when the machine runs short of memory. Ours hold none: it would end runs and free
    # nothing.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray makes its workers nice (15), agents and programs inherit it, and only root could take it back.
    "RAY_worker_niceness": "0",
    # Ray keeps idle workers for tasks that we never send; each costs a percent of a core.
    "RAY_num_workers_soft_limit": "0",
    # Ray looks ten times a second after its object store, its log folder's disk and its garbage, of which we
    # use nothing, and every second after what an autoscaler would want to know.
    "RAY_kill_idle_workers_interval_ms": "1000",
    "RAY_object_manager_timer_freq_ms": "2000",
    "RAY_local_fs_monitor_interval_ms": "5000",
    "RAY_raylet_check_gc_period_milliseconds": "2000",
    "RAY_free_objects_period_milliseconds": "10000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "30000",
    "RAY_debug_dump_period_milliseconds": "600000",
    "RAY_event_stats": "false",
    # What its dashboard and its metrics would show; and whether an event loop answers, of which nobody asks.
    "RAY_task_events_report_interval_ms": "0",
    "RAY_report_worker_backlog_interval_ms": "10000",
    "RAY_io_context_monitor_probe_interval_ms": "10000",
    "RAY_object_manager_rpc_threads_num": "1",
}
_FAST: Final = {
    # On one machine nothing can be slow but the machine itself. A killed raylet is refused connections at
    # once and found after 3 periods; the 3 s are for a raylet that is starved by training.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    # A raylet without a head ends after this; the supervisor then waits for the head and starts another.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    "RAY_raylet_liveness_self_check_interval_ms": "5000",
}
_PATIENT: Final = {
    **_FAST,
    # A node that is declared dead never comes back and its attempts must stop and go on elsewhere, so a
    # Wi-Fi that stutters for 40 s must not look like death. A killed raylet is still found within 8 s.
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "60",
}


def ray_env(config: StackConfig, token_file: Path) -> dict[str, str]:
    """Settings for everything of Ray in this stack: head, nodes and the controller's driver."""
    timing = _PATIENT if config.exposed else _FAST
    return {**_QUIET, **timing, "RAY_AUTH_TOKEN_PATH": str(token_file)}


def head_argv(config: StackConfig) -> list[str]:
    """Starts the head: no processors, no dashboard, no autoscaler; it runs no work."""
    return [
        *_ray_start(),
        "--head",
        f"--node-ip-address={config.head_address}",
        f"--port={config.ray_port}",
        "--num-cpus=0",
        "--num-gpus=0",
        "--include-dashboard=false",
        f"--dashboard-port={FREE_PORT}",
        "--no-monitor",
        f"--temp-dir={temp_dir(config, 'head')}",
        *_common(config, listening=config.exposed),
    ]


def node_argv(config: StackConfig, node: NodeConfig) -> list[str]:
    """Starts a node with its pool and name as labels."""
    labels = f"pool={node.pool},orch-node={node.name},orch-started={NOW_MS},orch-boot={boot_id()}"
    return [
        *_ray_start(),
        f"--address={config.ray_address}",
        f"--node-ip-address={node.address}",
        f"--num-cpus={node.cpus}",
        f"--num-gpus={node.gpus}",
        f"--memory={node.memory}",
        f"--labels={labels}",
        f"--temp-dir={temp_dir(config, node.name)}",
        *_common(config, listening=config.kind == "join"),
    ]


def _ray_start() -> list[str]:
    return [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--log-color=false"]


def _common(config: StackConfig, listening: bool) -> list[str]:
    ports = config.ray_ports if listening else type(config.ray_ports)()
    return [
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--node-manager-port={ports.node_manager}",
        f"--object-manager-port={ports.object_manager}",
        # Ray's defaults are fixed ports, which two nodes of one machine would both take.
        f"--min-worker-port={ports.first_worker}",
        f"--max-worker-port={ports.last_worker}",
        "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]
