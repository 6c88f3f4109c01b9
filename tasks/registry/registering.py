"""A run's final model becomes a version of a registered model, with all that serving and judging it need."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.finished import FinishedRun
from tasks.registry.ledger import CHALLENGER
from tasks.registry.registry import Registry, Version

__all__ = ["register"]

log = logging.getLogger(__name__)


def register(registry: Registry, run: FinishedRun, extras: Sequence[str] = ()) -> Version:
    """Return the version that is the final model of a run; it becomes the challenger if it is new.

    Registered again later, without extras, the same model is the same version. Raises TrackingError, StoreError, or
    ConfigError if an extra cannot be had.
    """
    found = registry.of_artifact(run.model.address, run.store.url)
    if found is not None and not extras:
        log.info("the model is registered already, as version %s of %s", found.number, registry.name)
        return found
    from tasks.serving.logged import log_package
    from tasks.serving.package import CARD, package_run

    registry.create()
    mlflow_run = registry.run_of(run)
    with tempfile.TemporaryDirectory(prefix="btm-") as name:
        folder = Path(name, "model")
        package_run(run.store, run.run_id, folder, extras)
        logged = log_package(registry.uri, mlflow_run, registry.name, folder)
        version = registry.add(logged, run, mlflow_run, (folder / CARD).read_text(encoding="utf-8"))
    registry.alias(CHALLENGER, version)
    return version
