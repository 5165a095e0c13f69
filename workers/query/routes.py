"""Every route, once: path, methods, scope, handler, what it is for, whether the gate counts it."""

from typing import Final

from workers.query import (
    handlers_deletes,
    handlers_health,
    handlers_live,
    handlers_query,
    handlers_samples,
    handlers_series,
)
from workers.query.frame import Route

ROUTES: Final = (
    Route("/query", ("POST",), "read", handlers_query.query, "aggregate one device's metric over a range of time"),
    Route("/api/v1/series", ("GET",), "read", handlers_series.series, "devices and metrics, page by page"),
    Route("/api/v1/samples", ("GET", "POST"), "read", handlers_samples.samples, "points, in order of series and time"),
    Route("/api/v1/series", ("DELETE",), "delete", handlers_deletes.delete, "delete points of a device, or tell which"),
    Route("/api/v1/deletes", ("GET",), "read", handlers_deletes.deletes, "what was deleted"),
    Route("/live", ("GET",), "read", handlers_live.live, "points as they become durable, as events", limited=False),
    Route("/healthz", ("GET",), "none", handlers_health.healthz, "whether this process is alive", limited=False),
    Route("/readyz", ("GET",), "read", handlers_health.readyz, "whether every storage node answers", limited=False),
    Route(
        "/metrics", ("GET",), "read", handlers_health.exposition, "Prometheus exposition of all workers", limited=False
    ),
)
