"""Comparisons that look at the same experiment as a run, in the same store: its report links them."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from btm_core.storage import Store
from btm_core.urls import without_credentials
from tasks.samples import within

__all__ = ["comparisons_elsewhere"]

log = logging.getLogger(__name__)

FOLDERS, LINKS, SECONDS = 200, 10, 20.0
"""So many of the newest runs are looked at, so many comparisons are linked, and so long at most is looked for them."""
COMPARISON = "comparison.json"


class Curve(BaseModel):
    """Figures along a path between two models; `level` are those of the model to compare with."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    shares: list[float] = Field(alias="lambda", min_length=2)
    h_mean: list[float]
    g_mean: list[float]
    level: dict[Literal["h_mean", "g_mean"], float] | None = None


class Comparison(BaseModel):
    """What of a comparison matters here; others may have written it."""

    title: str
    name: str
    created: str
    split_hash: str
    artifacts: frozenset[str] = frozenset()
    curves: dict[str, Curve] = {}


def comparisons_elsewhere(
    store: Store, run_id: str, name: str, split_hash: str, stage1: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the comparisons of an experiment and its test images, the newest first: what `elsewhere` of a report is.

    Each has `run_id`, `title`, `created`, `page` (its address, relative to the report), `same_stage_1`, and `curves`
    between models, which only the newest that has some of the same stage 1 does. None if they cannot be read: that is
    no reason to lose a run.

    Arguments:
    - stage1: addresses of stage 1.
    """
    try:
        return within(SECONDS, lambda: _linked(store, run_id, name, split_hash, frozenset(stage1)))
    except Exception as error:  # whatever a disk or a network comes up with
        log.warning("the report links no comparisons: %s", without_credentials(str(error)))
        return []


def _linked(store: Store, run_id: str, name: str, split_hash: str, stage1: frozenset[str]) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = []
    drawn = False
    for other, found in _comparisons(store, run_id):
        if (found.name, found.split_hash) != (name, split_hash):
            continue
        same = bool(stage1 & found.artifacts)
        curves = found.model_dump()["curves"] if same and not drawn else {}
        drawn = drawn or bool(curves)
        page = f"../{quote(other)}/comparison.html"
        links.append(
            {
                "run_id": other,
                "title": found.title,
                "created": found.created,
                "page": page,
                "same_stage_1": same,
                "curves": curves,
            }
        )
        if len(links) == LINKS:
            break
    return links


def _comparisons(store: Store, run_id: str) -> Iterator[tuple[str, Comparison]]:
    """Yield the comparisons among the newest runs but this, the newest first: run ids begin with their time."""
    paths = [fact.path.split("/") for fact in store.walk("runs")]
    newest = sorted({path[1] for path in paths if len(path) > 2} - {run_id}, reverse=True)[:FOLDERS]
    done = {path[1] for path in paths if path[2:] == [COMPARISON]}
    for other in newest:
        data = store.read("runs", other, COMPARISON) if other in done else None
        try:
            if data is not None:
                yield other, Comparison.model_validate_json(data)
        except ValidationError:
            continue  # of another version, or broken: it is no part of this run
