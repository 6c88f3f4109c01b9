"""What runs have written down of themselves: read in one place, and checked as far as housekeeping relies on it.

Anything else in these files may change freely. What fails the checks is one error that names the file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError, field_validator

from tasks.journal import JOURNAL, Entries

__all__ = ["REPORT", "SUMMARIES", "ModelRow", "Record", "addresses_in", "reason", "understood"]

SUMMARIES = ("run.json", "comparison.json")
"""A run that has one of them, or a report, has ended well. Those without a journal have no other record."""
REPORT = "report.json"
ADDRESS = re.compile(r"[a-z_0-9]+/[^/\s\"\\]+?-[0-9a-f]{16}(?![0-9a-zA-Z])")

Json: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


class JournalEntries(Entries):
    """A journal, with a time that is one."""

    @field_validator("started")
    @classmethod
    def _is_time(cls, started: str) -> str:
        datetime.fromisoformat(started)
        return started


class ModelRow(BaseModel):
    """A model of a run, and its figures: shares of 1."""

    model_config = ConfigDict(frozen=True)

    name: str
    stage: str | None = None
    artifact: str | None = None
    h_mean: float | None = None
    g_mean: float | None = None
    lowest_recall: float | None = None
    accuracy: float | None = None


class Tracking(BaseModel):
    """Where a run is tracked."""

    uri: str


class LineageRow(BaseModel):
    """A step of a run, and what became of it."""

    address: str
    state: str


class Summary(BaseModel):
    """What a run has written down in the end; a comparison has fewer fields than a run."""

    name: str
    seed: int | None = None
    tracking: Tracking | None = None
    models: tuple[ModelRow, ...] = ()
    lineage: tuple[LineageRow, ...] = ()


@dataclass(frozen=True)
class Record:
    """What is known of a run: the `state` of its journal, if it has one; addresses it got, and did not get."""

    state: str | None = None
    artifacts: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    name: str | None = None
    seed: int | None = None
    started: str | None = None
    tracking: str | None = None
    models: tuple[ModelRow, ...] = ()


def understood(documents: Mapping[str, bytes]) -> Record:
    """Return what a run's files tell, by name. Raises ValueError that names the file that cannot be understood."""
    entries: JournalEntries | None = None
    summaries: list[Summary] = []
    artifacts: set[str] = set()
    for name, data in documents.items():
        try:
            if name == JOURNAL:
                entries = JournalEntries.model_validate_json(data)
            else:
                document = Json.validate_json(data)
                summaries.append(Summary.model_validate(document))
                artifacts |= addresses_in("\n".join(_texts(document)))
        except ValidationError as error:
            raise ValueError(f"{name} cannot be understood: {reason(error)}") from None
    lost = {row.address for summary in summaries for row in summary.lineage if row.state == "lost"}
    if entries is not None:
        artifacts |= set(entries.artifacts)
        lost |= set(entries.wanted)
    told = entries or next(iter(summaries), None)
    return Record(
        state=None if entries is None else entries.state,
        artifacts=frozenset(artifacts - lost),
        wanted=frozenset(lost),
        name=None if told is None else told.name,
        seed=None if told is None else told.seed,
        started=None if entries is None else entries.started,
        tracking=next((summary.tracking.uri for summary in summaries if summary.tracking is not None), None),
        models=next((summary.models for summary in summaries if summary.models), ()),
    )


def addresses_in(text: str) -> set[str]:
    """Return everything in a text that looks like an artifact's address, in URLs too."""
    return set(ADDRESS.findall(text))


def reason(error: ValidationError) -> str:
    """Return the first of what is wrong with a document, in words, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])) + (": " if first["loc"] else "") + first["msg"]


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield all strings in a document, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
