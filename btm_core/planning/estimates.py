"""Estimates of time, from what was measured under the same conditions. What was never measured is not known.

A rate is seconds an image, pooled over measurements: the sum of seconds over the sum of images.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Conditions", "Measurement", "Rate", "conditions_of", "makespan", "rate_of"]

MUST_EQUAL = ("stage", "method", "part", "backbone", "precision", "size", "channels", "device", "threads", "processes")
"""Where these differ, a rate says nothing of another."""
BETTER_EQUAL = ("gpu_name", "pack", "cores", "machine", "batch_size", "augmentation")
"""Where these differ, a rate is still a guide; those that agree in the first of them come first."""
MOST = 20
"""Measurements that are pooled: the newest of the best."""


@dataclass(frozen=True)
class Conditions:
    """What a rate depends on. None is what does not matter (threads, on a GPU), or is not known.

    `pack` is how many networks one worker was given to train at once, whatever fitted of them into its memory.
    """

    stage: str
    backbone: str
    precision: str
    size: int
    channels: int
    device: str | None
    method: str | None = None
    part: str | None = None
    threads: int | None = None
    processes: int | None = 1
    pack: int = 1
    gpu_name: str | None = None
    cores: int | None = None
    machine: str | None = None
    batch_size: int | None = None
    augmentation: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Images that took so many seconds, under some conditions; `source` tells where that was."""

    conditions: Conditions
    images: int
    seconds: float
    source: str


@dataclass(frozen=True)
class Rate:
    """Seconds an image: pooled, and of the fastest and slowest measurement, under what conditions.

    `differs` names those that are not as they were asked for.
    """

    conditions: Conditions
    seconds: float
    fastest: float
    slowest: float
    sources: tuple[str, ...]
    differs: tuple[str, ...]


def conditions_of(config: Mapping[str, Any], host: Mapping[str, Any], stage: str) -> Conditions:
    """Return the conditions that a step was run under: its identity, and the facts on its machine, of its manifest.

    Raises KeyError if it does not tell them.
    """
    view, model, own = config["view"], config.get("model"), config.get("config") or {}
    named = own.get("method")
    method = named["name"] if isinstance(named, Mapping) else named
    on_gpu = bool(host["gpu_name"] if "gpu_name" in host else host.get("gpu"))  # older manifests have no name
    return Conditions(
        stage=stage,
        backbone=model["backbone"] if isinstance(model, Mapping) else config["backbone"],
        precision=model["precision"] if isinstance(model, Mapping) else config["precision"],
        size=view["size"],
        channels=view["channels"],
        device="cuda" if on_gpu else "cpu",
        method=method,
        part=own.get("train"),
        threads=None if on_gpu else host.get("threads"),
        processes=host.get("processes", 1),
        pack=host.get("pack", None if on_gpu else 1),  # older manifests do not tell; a CPU packs only if told to
        gpu_name=host.get("gpu_name"),
        cores=host.get("cores"),
        machine=host.get("machine"),
        batch_size=own.get("batch_size"),
        augmentation=view.get("augmentation"),
    )


def rate_of(wanted: Conditions, measured: Iterable[Measurement]) -> Rate | None:
    """Return the rate under conditions, from the measurements nearest to them; None if there are none.

    `measured` come newest first. What is None in `wanted` may be anything: on a cluster, nobody knows the device.
    """
    usable = [one for one in measured if one.images > 0 and not _differing(one.conditions, wanted, MUST_EQUAL)]
    if not usable:
        return None

    def distance(one: Measurement) -> tuple[bool, ...]:
        differing = _differing(one.conditions, wanted, BETTER_EQUAL)
        return tuple(name in differing for name in BETTER_EQUAL)

    least = min(map(distance, usable))
    best = [one for one in usable if distance(one) == least][:MOST]
    each = [one.seconds / one.images for one in best]
    pooled = sum(one.seconds for one in best) / sum(one.images for one in best)
    differs = tuple(name for name, differing in zip(BETTER_EQUAL, least, strict=True) if differing)
    return Rate(best[0].conditions, pooled, min(each), max(each), tuple(one.source for one in best), differs)


def _differing(one: Conditions, wanted: Conditions, names: Sequence[str]) -> list[str]:
    values = {name: getattr(wanted, name) for name in names}
    return [name for name, value in values.items() if value is not None and getattr(one, name) != value]


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return how long pieces of work take that so many workers take in turn, each when it is free."""
    free = [0.0] * max(workers, 1)
    for piece in seconds:
        heapq.heapreplace(free, free[0] + piece)
    return max(free)
