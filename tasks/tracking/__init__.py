"""MLflow: what a run did, epoch by epoch, for people to read. The server may be away for a while."""

from tasks.tracking.client import connect, find_experiment, mlflow_client, model_page, pattern_of
from tasks.tracking.names import PER_CLASS, run_note, split_metrics
from tasks.tracking.tracker import Tracker

__all__ = [
    "PER_CLASS",
    "Tracker",
    "connect",
    "find_experiment",
    "mlflow_client",
    "model_page",
    "pattern_of",
    "run_note",
    "split_metrics",
]
