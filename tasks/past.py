"""What a store tells of the past: how long steps took, and how far those are that are under way. Nothing is written.

Files are read as they are, not verified: a damaged one would be marked, and its figures are no result.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from btm_core.planning import Conditions, Measurement, conditions_of
from btm_core.storage import Manifest, Store
from btm_core.storage.manifest import MANIFEST
from tasks.data import DESCRIPTION
from tasks.housekeeping.inventory import beside
from tasks.saved_states import saved_states
from tasks.workspace import RECORDS

__all__ = ["Past", "epochs_done"]

NEWEST = 60
"""Artifacts of a stage that are looked at."""
Found = tuple[Conditions, int, float]


class Past:
    """How long the steps in a store took, by stage; read when it is first asked for."""

    def __init__(self, store: Store):
        self._store = store
        self._manifests: dict[str, Manifest | None] = {}
        self._stages: dict[str, list[Measurement]] = {}

    def of(self, stage: str) -> list[Measurement]:
        """Return what was measured of a stage, newest first."""
        if stage not in self._stages:
            self._stages[stage] = list(self._measured(stage))
        return self._stages[stage]

    def _measured(self, stage: str) -> Iterator[Measurement]:
        facts = [fact for fact in self._store.walk("artifacts", stage) if fact.path.endswith(f"/{MANIFEST}")]
        facts = sorted(facts, key=lambda fact: fact.modified, reverse=True)[:NEWEST]
        addresses = [fact.path.removeprefix("artifacts/").removesuffix(f"/{MANIFEST}") for fact in facts]
        manifests = beside(self._manifest, addresses)
        whole = [manifest for manifest in manifests if manifest is not None and manifest.corrupt is None]
        if stage in ("evaluate", "data"):
            yield from self._whole_steps(stage, whole)
            return
        for manifest, found in zip(whole, beside(self._epochs, whole), strict=True):
            if found is not None:
                yield Measurement(*found, source=manifest.address)

    def _manifest(self, address: str) -> Manifest | None:
        if address not in self._manifests:
            data = self._store.read("artifacts", address, MANIFEST)
            try:
                self._manifests[address] = None if data is None else Manifest.model_validate_json(data)
            except ValidationError:
                self._manifests[address] = None
        return self._manifests[address]

    def _epochs(self, manifest: Manifest) -> Found | None:
        """Return images and seconds of the epochs of a training; of the first only if there is no other: it starts."""
        if RECORDS not in manifest.logs:
            return None
        data = self._store.read("artifacts", manifest.address, manifest.paths.get(RECORDS, RECORDS)) or b""
        with suppress(ValueError, KeyError, TypeError):
            epochs = [json.loads(line) for line in data.decode().splitlines()]
            counted = epochs[1:] or epochs
            conditions = conditions_of(manifest.config, manifest.host, manifest.stage)
            return conditions, sum(e["images"] for e in counted), sum(e["seconds"] for e in counted)
        return None

    def _whole_steps(self, stage: str, manifests: Iterable[Manifest]) -> Iterator[Measurement]:
        """Yield the steps of each kind in sum: of evaluations that ran together, the first has the time of all."""
        sums: dict[Conditions, tuple[int, float, int]] = {}
        for manifest in manifests:
            with suppress(ValueError, KeyError, TypeError):
                conditions, images = (self._evaluation if stage == "evaluate" else self._data)(manifest)
                seconds = float(manifest.host["seconds"])
                old = sums.get(conditions, (0, 0.0, 0))
                sums[conditions] = old[0] + images, old[1] + seconds, old[2] + 1
        for conditions, (images, seconds, count) in sums.items():
            yield Measurement(conditions, images, seconds, f"{count} of {stage}/")

    def _evaluation(self, manifest: Manifest) -> tuple[Conditions, int]:
        config = {**manifest.config, "backbone": self._backbone(manifest.parents["model"])}
        description = self._description(manifest.parents["data"])
        images = description["splits"][manifest.config["split"]]["images"]
        return conditions_of({**config, "model": None}, manifest.host, "evaluate"), images

    def _data(self, manifest: Manifest) -> tuple[Conditions, int]:
        size, channels = manifest.config["size"] or 0, manifest.config["channels"]
        images = sum(split["images"] for split in self._description(manifest.address)["splits"].values())
        return Conditions("data", "", "", size, channels, "cpu", cores=manifest.host.get("cores")), images

    def _backbone(self, address: str) -> str:
        """Return the architecture of a model; a soup has that of its ingredients."""
        manifest = self._manifest(address)
        if manifest is None:
            raise KeyError(address)
        model = manifest.config.get("model")
        if isinstance(model, Mapping):
            return str(model["backbone"])
        return self._backbone(manifest.parents["ingredients[0]"])

    def _description(self, address: str) -> dict[str, Any]:
        manifest = self._manifest(address)
        if manifest is None:
            raise KeyError(address)
        data = self._store.read("artifacts", address, manifest.paths.get(DESCRIPTION, DESCRIPTION)) or b"{}"
        description: dict[str, Any] = json.loads(data)
        return description


def epochs_done(store: Store, address: str) -> int:
    """Return after which epoch a step would go on, from the state that was saved of it; 0 if there is none."""
    with suppress(OSError):  # a store that cannot be read
        return max((epochs for epochs, _ in saved_states(store, address)), default=0)
    return 0
