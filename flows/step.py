"""The flow that a work pool's workers execute: the far end of the work pool engine."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.prefect_pages import in_prefect
from flows.stopping import stop_at_once
from flows.workpool import STEP_FLOW
from tasks.engines.remote import RemoteOrder, carry_out

__all__ = ["step"]


@flow(name=STEP_FLOW, persist_result=False, on_running=[stop_at_once])
def step(order: RemoteOrder) -> State[Any]:
    """Do the steps of an order on this machine."""
    with in_prefect():
        outcome = carry_out(order)
    if outcome.name == "Done":
        return Completed(message=order.first)
    return Failed(name=outcome.name, message=outcome.message)
