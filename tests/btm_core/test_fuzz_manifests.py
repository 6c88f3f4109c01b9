"""Manifests that strangers wrote: a store reads them or says what is wrong, and stays in its folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btm_core.errors import StoreError
from btm_core.storage import Store, file_digest

ADDRESS = "finetune/subset-00-0123456789abcdef"
SECRET = b"not of this artifact"
NAMES = [
    "../../../../secret",
    "..",
    ".",
    "",
    "/etc/hostname",
    "a/b",
    "..\\secret",
    "a\0b",
    "../subset-01-0123/model.safetensors",
]
fuzz = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one artifact, and beside it a file that is none of its."""
    (tmp_path / "secret").write_bytes(SECRET)
    store = Store(str(tmp_path / "store"))
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"content")
    store.publish(ADDRESS, folder, config={}, parents={}, versions={}, host={})
    return store


def rewrite(tmp_path: Path, manifest: Any) -> None:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (tmp_path / "store/artifacts" / ADDRESS / "manifest.json").write_bytes(text)


def sound(tmp_path: Path) -> dict[str, Any]:
    """Return the manifest that was written first, whatever became of it."""
    digest, size = file_digest(tmp_path / "made/model.safetensors")
    facts = {"config": {}, "parents": {}, "files": {"model.safetensors": [digest, size]}, "logs": {}, "versions": {}}
    return {"stage": "finetune", "address": ADDRESS, "host": {}, **facts}


def stays_inside(store: Store, tmp_path: Path) -> None:
    """Read the artifact in every way: what comes out is its own content, or one error of the store's."""
    with suppress(StoreError):
        manifest = store.manifest(ADDRESS)
        artifact = store.find(ADDRESS)
        for name in manifest.files if manifest is not None and artifact is not None else ():
            with suppress(StoreError, KeyError):
                assert store.fetch(artifact, name, tmp_path / "scratch").read_bytes() == b"content"  # type: ignore[arg-type]
    assert (tmp_path / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["files", "logs", "paths"])
def test_no_name_leads_out_of_the_artifact(store: Store, tmp_path: Path, name: str, where: str) -> None:
    fact = [*file_digest(tmp_path / "secret")]
    manifest = sound(tmp_path)
    if where == "paths":
        manifest |= {"files": {"model.safetensors": fact}, "paths": {"model.safetensors": name}}
    else:
        manifest |= {where: {name: fact}}
    rewrite(tmp_path, manifest)
    stays_inside(store, tmp_path)
    try:
        found = store.manifest(ADDRESS)
    except StoreError as error:
        assert "manifest.json" in str(error)  # noqa: PT017
        return
    assert found is None or getattr(found, "corrupt", None), found


@fuzz
@given(
    st.binary(max_size=30)
    | JSON
    | st.dictionaries(
        st.sampled_from(["stage", "address", "config", "parents", "files", "logs", "paths", "host", "corrupt"]),
        JSON
        | st.dictionaries(
            st.sampled_from([*NAMES, "model.safetensors"]),
            JSON | st.tuples(st.text(max_size=3) | st.just("0" * 64), st.integers(-1, 30)).map(list),
            max_size=3,
        ),
    )
)
def test_any_manifest(store: Store, tmp_path: Path, changes: Any) -> None:
    rewrite(tmp_path, {**sound(tmp_path), **changes} if isinstance(changes, dict) else changes)
    stays_inside(store, tmp_path)


def test_a_sound_manifest_is_read(store: Store, tmp_path: Path) -> None:
    rewrite(tmp_path, sound(tmp_path))
    artifact = store.find(ADDRESS)
    assert artifact is not None
    assert store.fetch(artifact, "model.safetensors", tmp_path / "scratch").read_bytes() == b"content"
