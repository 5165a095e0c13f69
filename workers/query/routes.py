"""Every route, once: path, methods, scope, handler, what it is for, whether the gate counts it."""

from typing import Final

from workers.query import (
    handlers_cluster,
    handlers_deletes,
    handlers_docs,
    handlers_health,
    handlers_live,
    handlers_query,
    handlers_samples,
    handlers_series,
    handlers_status,
)
from workers.query.frame import Route

_LISTED: Final = ("GET", "POST")  # what is asked may be longer than a URL

ROUTES: Final = (
    Route("/query", ("POST",), "read", handlers_query.query, "aggregate what matches"),
    Route("/api/v1/series", _LISTED, "read", handlers_series.series, "series and what they hold, page by page"),
    Route("/api/v1/samples", _LISTED, "read", handlers_samples.samples, "points, in order of series and time"),
    Route("/api/v1/series", ("DELETE",), "delete", handlers_deletes.delete, "delete points of a device, or tell which"),
    Route("/api/v1/deletes", ("GET",), "read", handlers_deletes.deletes, "what was deleted"),
    Route("/api/v1/devices", _LISTED, "read", handlers_series.devices, "devices, page by page"),
    Route("/api/v1/metrics-names", _LISTED, "read", handlers_series.metric_names, "names of metrics, page by page"),
    Route("/api/v1/tags", _LISTED, "read", handlers_series.tags, "names of tags, or the values of one"),
    Route("/api/v1/last", _LISTED, "read", handlers_series.last, "the newest point of everything that matches"),
    Route("/api/v1/gaps", _LISTED, "read", handlers_series.gaps, "silences longer than usual"),
    Route("/api/v1/status", ("GET",), "read", handlers_status.status, "what every worker says", limited=False),
    Route("/api/v1/ring", ("GET",), "read", handlers_status.ring, "who owns how much", limited=False),
    Route("/api/v1/moves", ("GET",), "read", handlers_cluster.moves, "moves and repairs", limited=False),
    Route("/api/v1/history", ("GET",), "read", handlers_cluster.history, "the last rings, and what each changed"),
    Route("/api/v1/dead-letters", ("GET",), "read", handlers_cluster.dead_letters, "what was refused", limited=False),
    Route("/api/v1/me", ("GET",), "any", handlers_cluster.me, "whose token this is", limited=False),
    Route("/openapi.yaml", ("GET",), "none", handlers_docs.openapi, "this interface for programs", limited=False),
    Route("/docs", ("GET",), "none", handlers_docs.page, "this interface to read", limited=False),
    Route("/live", ("GET",), "read", handlers_live.live, "points as they become durable, as events", limited=False),
    Route("/healthz", ("GET",), "none", handlers_health.healthz, "whether this process is alive", limited=False),
    Route("/readyz", ("GET",), "read", handlers_health.readyz, "whether every storage node answers", limited=False),
    Route(
        "/metrics", ("GET",), "read", handlers_health.exposition, "Prometheus exposition of all workers", limited=False
    ),
)
