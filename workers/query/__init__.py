"""The query worker: HTTP in, scatter-gather over the storage nodes, one answer out."""
