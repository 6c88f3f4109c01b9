"""Which kind of files a path or URL leads to."""

from pathlib import Path

from btm_core.errors import StoreError
from btm_core.storage.files import Files
from btm_core.storage.local import LocalFiles
from btm_core.storage.remote import RemoteFiles
from btm_core.storage.s3 import S3Files
from btm_core.storage.settings import StorageSettings, open_filesystem

__all__ = ["open_files"]


def open_files(url: str, settings: StorageSettings) -> Files:
    """Return the files below a path or URL. Raises StoreError if there is no such file system."""
    fs, root = open_filesystem(url, settings)
    if "file" in fs.protocol:
        return LocalFiles(Path(root))
    if not root.strip("/"):
        raise StoreError(f"{url!r} names no bucket: use s3://bucket/prefix")
    return (S3Files if "s3" in fs.protocol else RemoteFiles)(fs, root.rstrip("/"), url, settings)
