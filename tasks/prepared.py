"""The manifest of a data set: what it held when somebody checked it, and what changed since."""

import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btm_core.config import ExperimentConfig
from btm_core.errors import DataError
from btm_core.storage.folder import Folder
from tasks.data import fingerprint, image_digests, telling
from tasks.events import publish
from tasks.settings import RuntimeSettings

if TYPE_CHECKING:
    from btm_core.data.catalog import Catalog

log = logging.getLogger(__name__)

__all__ = ["changes", "keep_manifest", "manifest_of"]


def manifest_of(experiment: ExperimentConfig, settings: RuntimeSettings) -> dict[str, Any]:
    """Check a data set as a run does, read every image, and return its manifest.

    The hash of a split is that of reports. Raises DataError that says what is missing, and where published sets are.
    """
    from btm_core.data import scan
    from btm_core.data.long_tail import class_counts, profile
    from btm_core.data.published import check_complete, published_set

    known = published_set(experiment.data) if experiment.data.format == "list" else None
    if known is not None:
        check_complete(experiment.data, known)
    catalog = scan(experiment.data)
    if catalog.train.paths is not None:
        count = sum(len(split) for split in catalog.splits)
        log.info(
            "reading %s images to take their digests; those that were read before are not read again", f"{count:,}"
        )
    digests = image_digests(catalog, settings.cache, telling(publish, f"data/{experiment.data.format}"))
    hashes = fingerprint(catalog, digests)
    counts = {split.name: class_counts(split.labels, catalog.num_classes) for split in catalog.splits}
    return {
        "name": experiment.name,
        "published": known.name if known else None,
        "format": experiment.data.format,
        "root": catalog.root,
        "classes": list(catalog.class_names),
        "profile": asdict(profile(catalog.train_counts, catalog.uncarved_counts)),
        "splits": {
            split.name: {"images": len(split), "hash": hashes[split.name], "counts": counts[split.name].tolist()}
            for split in catalog.splits
        },
        "files": _files(catalog, digests),
    }


def _files(catalog: "Catalog", digests: dict[str, list[str]]) -> dict[str, list[Any]]:
    """Return size and sha256 of each image file; data that are arrays have none."""
    from btm_core.data.files import stat_files

    found: dict[str, list[Any]] = {}
    for split in catalog.splits:
        if split.paths is None:
            continue
        stats = stat_files(catalog.root or "", split.paths)
        for path, stat, digest in zip(split.paths, stats, digests[split.name], strict=True):
            found[path] = [stat[0] if stat else None, digest]
    return found


def keep_manifest(file: Path, manifest: dict[str, Any], *, accept: bool) -> dict[str, Any]:
    """Write a manifest, unless one is there that says the same; return it with `written`, and `state`: new, unchanged
    or accepted.

    Raises DataError that tells what changed, if it says something else and the change is not accepted.
    """
    folder, name = Folder(str(file.parent)), file.name
    old: dict[str, Any] | None = None
    if file.exists():
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
            told = changes(old, manifest)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{file} is no manifest of a data set; move it away, or choose another by -o") from None
        if not told:
            return manifest | {"written": old["written"], "state": "unchanged"}
        if not accept:
            lines = "\n".join(f"  {line}" for line in told)
            raise DataError(
                f"the data are not as they were on {old['written']}, as {file} has it:\n{lines}\nPut them back, or "
                "take them as they are now with --accept"
            )
    written = manifest | {"written": datetime.now(UTC).isoformat(timespec="seconds")}
    folder.write(json.dumps(written, indent=1).encode(), name)
    return written | {"state": "accepted" if old else "new"}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return in words what is different in a later manifest; where the data lie is no difference."""
    told = []
    if old["classes"] != new["classes"]:
        told.append(f"classes: {len(old['classes']):,} before, {len(new['classes']):,} now, or others")
    before, now = old["files"], new["files"]
    for title, paths in (
        ("new files", [path for path in now if path not in before]),
        ("files that are gone", [path for path in before if path not in now]),
        ("files with other content", [path for path in now if path in before and now[path] != before[path]]),
    ):
        if paths:
            told.append(f"{title}: {len(paths):,} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})")
    for split in sorted(old["splits"].keys() | new["splits"].keys()):
        one, two = old["splits"].get(split), new["splits"].get(split)
        if one is None or two is None or one["hash"] != two["hash"]:
            count = [part["images"] if part else 0 for part in (one, two)]
            told.append(f"{split}: {count[0]:,} images before, {count[1]:,} now; labels, order or content differ")
    return told
