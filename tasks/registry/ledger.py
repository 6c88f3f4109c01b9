"""Who is champion: moved by one at a time, and never half.

MLflow has aliases, but no way to move one only if nobody else did. What it can do once only is to make an experiment of
a given name. So a move is claimed first, by making the experiment `btm/<model>/<made>/promotion-<n>` (and deleting it,
which hides it from the pages and keeps its name and tags); whoever makes it has the n-th move, and what it says is then
done to the aliases. A claim of somebody who died in between is carried out by the next who looks. `made` is when the
registered model was made: one that is made anew under an old name has moves of its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from btm_core.errors import TrackingError

__all__ = ["CHALLENGER", "CHAMPION", "PREVIOUS", "Ledger", "Standing", "insisting"]

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
GENERATION = "btm.generation"
"""Tag of the registered model: how many moves are done."""
UNREADABLE_SECONDS = 20.0


@dataclass(frozen=True)
class Standing:
    """Versions by alias, None where there is none, and the number of moves so far."""

    generation: int
    champion: str | None
    previous: str | None


class Ledger:
    """The aliases of one registered model, which must exist. `client` is MLflow's."""

    def __init__(self, client: Any, model: str):
        self._client, self._model = client, model

    def standing(self) -> Standing:
        """Return how things are, after carrying out what was claimed and not done."""
        while True:
            registered = self._client.get_registered_model(self._model)
            generation = int(registered.tags.get(GENERATION, 0))
            claim = self._claim(registered, generation + 1)
            if claim is None:
                aliases = {name: str(version) for name, version in registered.aliases.items()}
                return Standing(generation, aliases.get(CHAMPION), aliases.get(PREVIOUS))
            self._carry_out(generation + 1, claim)

    def move(self, seen: Standing, champion: str, previous: str | None, by: str) -> bool:
        """Make a version the champion, if things still are as they were `seen`; return whether they were."""
        from mlflow.exceptions import MlflowException

        number = seen.generation + 1
        tags = {"btm.champion": champion, "btm.previous": previous or "", "btm.by": by, "btm.claim": uuid4().hex}
        registered = self._client.get_registered_model(self._model)
        try:
            self._client.create_experiment(self._name(registered, number), tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Ours, if the reply to it was lost and the client asked again.
            claim = self._claim(registered, number) or {}
            if claim.get("btm.claim") != tags["btm.claim"]:
                return False
        self._hide(registered, number)
        self._carry_out(number, tags)
        # If we were slow, others have done our move and theirs; should we just have undone theirs, do it again.
        while (later := self._claim(registered, number := number + 1)) is not None:
            self._carry_out(number, later, again=True)
        return True

    def _name(self, registered: Any, number: int) -> str:
        return f"btm/{self._model}/{registered.creation_timestamp}/promotion-{number:06d}"

    def _hide(self, registered: Any, number: int) -> None:
        found = self._client.get_experiment_by_name(self._name(registered, number))
        if found is not None and found.lifecycle_stage == "active":
            self._client.delete_experiment(found.experiment_id)

    def _claim(self, registered: Any, number: int) -> dict[str, str] | None:
        """Return what was claimed as the move of a number. Raises TrackingError if that is hidden, and not done."""
        from mlflow.exceptions import MlflowException

        deadline = time.monotonic() + UNREADABLE_SECONDS
        while True:
            try:
                found = self._client.get_experiment_by_name(self._name(registered, number))
                return None if found is None else dict(found.tags)
            except MlflowException as error:
                if error.error_code != "PERMISSION_DENIED":
                    raise
            if int(self._client.get_registered_model(self._model).tags.get(GENERATION, 0)) >= number:
                return {}  # done by its maker
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"another user of MLflow has claimed to move the champion of {self._model}, and did not; that "
                    f"user, or MLflow's administrator, can carry it out: btm promote --model {self._model} --show"
                )
            time.sleep(0.5)

    def _carry_out(self, number: int, claim: dict[str, str], again: bool = False) -> None:
        """Set the aliases as claimed, unless that was done."""
        registered = self._client.get_registered_model(self._model)
        if not claim or (int(registered.tags.get(GENERATION, 0)) >= number and not again):
            return
        champion, previous = claim["btm.champion"], claim["btm.previous"]
        if self._exists(champion):
            if previous and self._exists(previous):
                insisting(lambda: self._client.set_registered_model_alias(self._model, PREVIOUS, previous))
            elif PREVIOUS in registered.aliases:
                self._client.delete_registered_model_alias(self._model, PREVIOUS)
            insisting(lambda: self._client.set_registered_model_alias(self._model, CHAMPION, champion))
            if str(registered.aliases.get(CHALLENGER)) == champion:
                self._client.delete_registered_model_alias(self._model, CHALLENGER)
        insisting(lambda: self._client.set_registered_model_tag(self._model, GENERATION, str(number)))

    def _exists(self, version: str) -> bool:
        """Return whether a version was not deleted since."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_model_version(self._model, version)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True


def insisting(request: Callable[[], object]) -> None:
    """Make a request that may be made twice until it succeeds: of two that set one alias first MLflow refuses one."""
    for attempt in Retrying(
        retry=retry_if_exception(_collided), stop=stop_after_attempt(5), wait=wait_random(0, 0.2), reraise=True
    ):
        with attempt:
            request()


def _collided(error: BaseException) -> bool:
    return getattr(error, "error_code", None) in ("BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
