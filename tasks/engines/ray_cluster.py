"""The Ray engine: each order is a Ray task that holds its share of a GPU; one whose process or node died is sent again.

Ray's tasks are called from the threads of the flow's own task runner. With prefect-ray's RayTaskRunner every node would
have to reach the Prefect server, which in its embedded form listens on 127.0.0.1 alone; so nodes need the store only.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from btm_core.errors import ConfigError
from btm_core.storage import Store
from tasks.engines.pool import WorkerDiedError
from tasks.engines.remote import Outcome, RemoteOrder, carry_out, follow, remote_order
from tasks.events import Event
from tasks.settings import RuntimeSettings
from tasks.step import Step
from tasks.stopping import on_stop

__all__ = ["run_on_ray"]

_lock = threading.Lock()


def run_on_ray(steps: Sequence[Step], settings: RuntimeSettings) -> Iterator[Event]:
    """Yield the events of `steps`, done one after another somewhere on the cluster."""
    ray = _connected(settings)
    wanted = settings.finetune_threads if steps[0].runs_beside_others else settings.threads
    total = ray.cluster_resources()
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and total.get("GPU", 0) > 0)
    gpus = settings.pretrain_gpus if steps[0].on_several_gpus and settings.pretrain_gpus > 1 else settings.gpu_share
    resources = {"num_cpus": min(wanted, total.get("CPU", wanted)), "num_gpus": gpus if on_gpu else 0.0}
    # A lost task is `tasks.execution`'s to send again, as on every engine: it counts, and says so. Ray's own retries
    # would multiply with those, and an order that has begun would count as silent while its next try waits for a node.
    remote = ray.remote(_carry_out).options(**resources, max_retries=0, name=steps[0].address)
    order = remote_order(steps, settings)
    job = _RayJob(ray, remote.remote(order.model_dump_json()), order, settings)
    with on_stop(job.cancel):
        yield from follow(steps, settings, job)


def _carry_out(order: str) -> str:
    """The far end, in a process of Ray's: it dies with its own worker, which waits on its standard input."""
    return carry_out(RemoteOrder.model_validate_json(order)).model_dump_json()


class _RayJob:
    def __init__(self, ray: Any, reference: Any, order: RemoteOrder, settings: RuntimeSettings):
        self._ray, self._reference, self._order = ray, reference, order
        self._store = Store(settings.store_url)
        self._began = False

    def look(self) -> Literal["pending", "running", "done"]:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:  # Ray does not tell a waiting task from a running one without its dashboard
            self._began = self._began or self._order.has_begun(self._store)
            return "running" if self._began else "pending"
        try:
            answer = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(f"Ray lost {self._order.first}: {type(error).__name__}: {error}") from None
        Outcome.model_validate_json(answer).raise_error()
        return "done"

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=True)


def _connected(settings: RuntimeSettings) -> Any:
    """Return ray, connected to the cluster of the settings, to that of RAY_ADDRESS, or to one started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError('engine ray needs Ray: pip install "btm[ray]"') from None

    with _lock:
        if not ray.is_initialized():
            address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "local"
            gpus = settings.gpu_count() if address == "local" else None
            _check_listening(address)
            try:
                ray.init(
                    address=address,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"the Ray cluster at {address} cannot be used: {error}") from None
    return ray


def _check_listening(address: str) -> None:
    """Raise ConfigError if nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # local, auto
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"the Ray cluster at {address} cannot be reached: {error}; is it up? Correct RAY_ADDRESS or "
            "BTM_RAY_ADDRESS, or unset them to have one started here"
        ) from None
