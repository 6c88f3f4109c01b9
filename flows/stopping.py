"""Ending at once on Ctrl-C, SIGTERM and a cancellation in Prefect's UI: Prefect itself would wait for its tasks.

Workers end with this process, in whatever way it ends. What runs elsewhere is cancelled, and who keeps books (Prefect,
MLflow) is told, within a few seconds. Artifacts are whole or absent, always.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from flows.environment import server_stays
from tasks.stopping import clean_up, on_stop, stopping

__all__ = ["handle_signals", "stop_at_once"]

CLEAN_UP_SECONDS = 5.0
LOOK_SECONDS = 2.0


def handle_signals() -> None:
    """On Ctrl-C and SIGTERM, end at once."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def stop_at_once(flow: Any, flow_run: Any, state: Any) -> None:
    """Do so within a flow too: Prefect puts its own handler of SIGTERM in place when a flow starts.

    A hook of a flow's start. Prefect's workers end the runs of deployments by SIGTERM, also when they are cancelled;
    for all other flow runs nobody does: they look themselves whether they were cancelled.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    if flow_run.deployment_id is None and server_stays():
        threading.Thread(target=_watch, args=(flow_run.id,), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    _end("stopped", 128 + number)


def _watch(flow_run_id: Any) -> None:
    """End this process when its flow run is cancelled, by whomever."""
    import time

    import httpx
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.states import Cancelled

    with get_client(sync_client=True) as client:

        def tell() -> None:
            client.set_flow_run_state(flow_run_id, Cancelled(), force=True)

        with on_stop(tell):
            while True:
                time.sleep(LOOK_SECONDS)
                try:
                    state = client.read_flow_run(flow_run_id).state
                except (httpx.HTTPError, PrefectHTTPStatusError):
                    continue  # the server is away for a moment
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    _end("cancelled", 1)
                if state is not None and state.is_final():
                    return


def _end(how: str, code: int) -> None:
    if stopping.is_set():  # a second Ctrl-C is an impatient one
        os._exit(code)
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)  # the progress display had hidden the cursor
    print(f"\nbtm: {how}; the same command goes on where it stopped", file=sys.stderr, flush=True)
    # In a thread of its own: a signal may have interrupted somebody who holds a lock that cleaning up needs.
    thread = threading.Thread(target=clean_up, args=(CLEAN_UP_SECONDS,), daemon=True)
    thread.start()
    thread.join(CLEAN_UP_SECONDS + 1)
    os._exit(code)
