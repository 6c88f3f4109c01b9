"""A worker that is warm when the first stage wants one: it imports torch beside the start of Prefect's server."""

from btm_core.config import ExperimentConfig
from btm_core.data.catalog import Catalog
from btm_core.storage import Store
from flows.btm import shared_inputs, stage1_step
from tasks.data import prepare_data
from tasks.engines.pool import warm
from tasks.settings import RuntimeSettings

__all__ = ["warm_worker"]


def warm_worker(experiment: ExperimentConfig, settings: RuntimeSettings, catalog: Catalog) -> None:
    """Start a worker, if stage 1 is to be trained here and it takes no reading of files to know that."""
    files = experiment.pretrain.checkpoint or experiment.pretrain.initial
    if settings.engine != "local" or files is not None or any(split.paths is not None for split in catalog.splits):
        return
    store = Store(settings.store_url)
    data = store.find(prepare_data(experiment.name, experiment.data, settings.cache, catalog).address)
    if data is None or store.find(stage1_step(experiment, shared_inputs(experiment, data)).address) is None:
        warm(settings)
