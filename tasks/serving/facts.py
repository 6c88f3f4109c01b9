"""What a served model tells of its origin: taken from the records of the run that made it."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from btm_core.config import InputConfig
from btm_core.errors import StoreError
from btm_core.storage import Artifact, Store
from tasks.data import DESCRIPTION, PIXELS
from tasks.finished import FinishedRun

__all__ = ["ModelFacts", "facts_of", "sample_images"]


class ModelFacts(BaseModel):
    """Facts on the final model of a run.

    - artifact, evaluation: addresses in the store.
    - figures: its row of the report, fractions; before: that of the model it is compared with.
    - lowest_classes: as in the report, the worst first.
    - data: content fingerprint, splits with their hashes, long-tail profile.
    - lineage: addresses of all that the run made or found, with their parents; the state of what it lost is `lost`.
    - lost_subsets: numbers of the subsets whose ingredients were lost: the soup is made of the others.
    - licence: note of the configuration, None if there is none.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    run_id: str
    created: str
    store: str
    report: str
    artifact: str
    evaluation: str
    figures: dict[str, Any]
    before: dict[str, Any]
    lowest_classes: tuple[dict[str, Any], ...]
    experiment: dict[str, Any]
    data: dict[str, Any]
    lineage: tuple[dict[str, Any], ...]
    lost_subsets: tuple[int, ...] = ()
    versions: dict[str, str]
    licence: str | None = None
    tracking_run_id: str | None = None

    @property
    def input(self) -> InputConfig:
        """How images are shown to the network."""
        return InputConfig.model_validate(self.experiment["data"]["input"])

    def metadata(self) -> dict[str, Any]:
        """Return what is written into the MLflow model, for machines to read."""
        return {
            "btm.run_id": self.run_id,
            "btm.store": self.store,
            "btm.artifact": self.artifact,
            "btm.evaluation": self.evaluation,
            "btm.data": self.data["content"],
            "btm.report": self.report,
            "btm.figures": self.figures,
            "btm.lineage": [row["address"] for row in self.lineage],
            "btm.lost_subsets": list(self.lost_subsets),
            "btm.versions": self.versions,
            "btm.licence": self.licence,
        }


def facts_of(store: Store, run_id: str) -> ModelFacts:
    """Return the facts on the final model of a run. Raises StoreError if the store does not know it."""
    run = FinishedRun.read(store, run_id)
    report, summary = run.report, run.summary
    final = report["models"][-1]
    return ModelFacts(
        name=report["name"],
        run_id=run_id,
        created=report["created"],
        store=store.url,
        report=summary["report"],
        artifact=final["artifact"],
        evaluation=final["evaluation"],
        figures=final,
        before=next(row for row in report["models"] if row["name"] == report["compared_with"]),
        lowest_classes=report["lowest_classes"],
        experiment=report["experiment"],
        data=report["data"],
        lineage=report["lineage"],
        lost_subsets=tuple(row["subset"] for row in report["lost_ingredients"]),
        versions=report["versions"],
        licence=report["experiment"].get("licence"),  # runs from before there was one have none
        tracking_run_id=summary["tracking"]["run_id"],
    )


def sample_images(store: Store, facts: ModelFacts, count: int = 8) -> list[bytes]:
    """Return `count` image files, spread over the test split of a run. Raises DataError or StoreError."""
    from btm_core.data.reader import ImageReader
    from btm_core.data.sources import read_list

    address = next(row["address"] for row in facts.lineage if row["address"].startswith("data/"))
    data = store.find(address)
    if data is None:
        raise StoreError(
            f"the data of run {facts.run_id}, {address}, are no longer in the store {store.url}; run it again"
        )
    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        if store.read_json(data, DESCRIPTION)["packed"]:
            return _from_pixels(store, data, Path(folder), count)
        listing = store.fetch(data, "test.txt", Path(folder))
        paths, _ = read_list(listing.read_text(encoding="utf-8"), str(listing))
    chosen = [paths[i] for i in _spread(len(paths), count)]
    return ImageReader(str(facts.experiment["data"]["root"])).read(chosen)


def _from_pixels(store: Store, data: Artifact, folder: Path, count: int) -> list[bytes]:
    import io

    from PIL import Image

    from btm_core.tensor_files import load_arrays

    pixels = load_arrays(store.fetch(data, PIXELS, folder))["test"]
    files = []
    for i in _spread(len(pixels), count):
        image = pixels[i][0] if pixels.shape[1] == 1 else pixels[i].transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def _spread(total: int, count: int) -> list[int]:
    """Return up to `count` positions, evenly spread."""
    return sorted({i * total // count for i in range(count)})
