"""Training: configuration, data loading, proposals, checkpoints, metrics and reports."""
