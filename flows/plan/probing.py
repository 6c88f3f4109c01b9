"""Having a worker of this machine measure how fast it trains; nothing of it is kept."""

import tempfile

from btm_core.storage import Artifact, Store
from tasks.engines.pool import pool_of, run_in_pool
from tasks.probe import MEASURED, Probe
from tasks.settings import RuntimeSettings

__all__ = ["probed"]

DEADLINE_HOURS = 0.2


def probed(step: Probe, settings: RuntimeSettings) -> dict[str, dict[str, float]]:
    """Return steps, batch_size, images and seconds of each stage, measured in a worker of this machine.

    Raises ConfigError if a batch does not fit into the GPU; WorkerError if the worker dies of it.
    """
    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        own = settings.model_copy(
            update={"store": folder, "workers": 1, "pretrain_gpus": 1, "deadline_hours": DEADLINE_HOURS}
        )
        try:
            events = list(run_in_pool([step], own))
        finally:
            pool_of(own).get().kill()
        [done] = [event for event in events if event["event"] == "done"]
        found: dict[str, dict[str, float]] = Store(folder).read_json(Artifact(**done["artifact"]), MEASURED)
        return found
