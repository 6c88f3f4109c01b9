"""A look at a store on S3 from outside: by plain requests, straight from the server, without the code under test."""

import hashlib
import json
from typing import Any

__all__ = ["artifacts_of", "connect"]


def connect(environment: dict[str, str]) -> Any:
    """Return s3fs on the server that an AWS environment names, without caches."""
    import s3fs

    return s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def artifacts_of(environment: dict[str, str], store: str) -> tuple[dict[str, str], list[str]]:
    """Read every byte of every artifact below an s3:// URL. Returns digests by address, and what is wrong.

    Wrong is a manifest that names a file which is not there, or has another size or sha256 than it says. Files that no
    manifest names are no artifact; one that is marked as corrupt counts as absent.
    """
    fs = connect(environment)
    root = f"{store.removeprefix('s3://')}/artifacts/"
    there = {name: fs.cat_file(name) for name in fs.find(root)}
    digests, wrong = {}, []
    for name, data in there.items():
        folder, _, last = name.rpartition("/")
        if last != "manifest.json":
            continue
        manifest = json.loads(data)
        if manifest.get("corrupt"):
            continue
        if folder != f"{root}{manifest['address']}":
            wrong.append(f"{name} says that it lies at {manifest['address']}")
        for file, (digest, size) in {**manifest["files"], **manifest["logs"]}.items():
            found = there.get(f"{folder}/{manifest.get('paths', {}).get(file, file)}")
            if found is None:
                wrong.append(f"{folder}/{file} is missing")
            elif (hashlib.sha256(found).hexdigest(), len(found)) != (digest, size):
                wrong.append(f"{folder}/{file} is not what its manifest says")
        lines = [f"{digest}  {file}" for file, (digest, _) in sorted(manifest["files"].items())]
        digests[manifest["address"]] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return digests, wrong
