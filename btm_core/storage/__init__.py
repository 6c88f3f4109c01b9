"""Artifacts in a store, on a local disk or in object storage: integrity, faults, access."""

from btm_core.storage.files import FileFact, file_digest
from btm_core.storage.folder import Transfer
from btm_core.storage.local import refuse_special
from btm_core.storage.manifest import Artifact, Manifest
from btm_core.storage.ranges import Ranges
from btm_core.storage.reading import (
    ask,
    fetch_file,
    file_digest_at,
    open_ranges,
    read_bytes,
    read_file,
    write_file,
)
from btm_core.storage.settings import StorageSettings, open_filesystem, storage_settings
from btm_core.storage.store import Store

__all__ = [
    "Artifact",
    "FileFact",
    "Manifest",
    "Ranges",
    "StorageSettings",
    "Store",
    "Transfer",
    "ask",
    "fetch_file",
    "file_digest",
    "file_digest_at",
    "open_filesystem",
    "open_ranges",
    "read_bytes",
    "read_file",
    "refuse_special",
    "storage_settings",
    "write_file",
]
