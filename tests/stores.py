"""Stores with small artifacts and runs in them, for tests of housekeeping."""

import json
import os
import time
from pathlib import Path
from typing import Literal

from btm_core.storage import Artifact, Store
from tasks.journal import JOURNAL, Entries

__all__ = ["address", "aged", "forge_run", "make"]


def address(name: str) -> str:
    """Return an address whose hash is made from a name."""
    return f"finetune/{name}-{name.encode().hex().ljust(16, '0')[:16]}"


def make(store: Store, folder: Path, name: str, *parents: str) -> Artifact:
    """Publish an artifact of two small files."""
    out = folder / f"out-{name}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.bin").write_bytes(name.encode() * 10)
    (out / "records.jsonl").write_text("{}")
    made_from = {f"parent[{i}]": address(parent) for i, parent in enumerate(parents)}
    return store.publish(
        address(name), out, config={}, parents=made_from, versions={}, host={}, logs=("records.jsonl",)
    )


def forge_run(
    store: Store,
    run_id: str,
    *names: str,
    state: Literal["running", "done", "failed", "stopped"] = "done",
    lost: tuple[str, ...] = (),
) -> None:
    """Write what a run leaves behind that took or made artifacts, and did not get those that are lost."""
    entries = Entries(
        run_id=run_id,
        name="digits-lt",
        seed=0,
        started="2026-01-02T03:04:05+00:00",
        state=state,
        artifacts=[address(name) for name in names],
        wanted=[address(name) for name in lost],
    )
    store.write(entries.model_dump_json().encode(), "runs", run_id, JOURNAL)
    if state == "done":
        figures = {"name": "final", "stage": "post_train", "h_mean": 0.5, "g_mean": None, "accuracy": 0.75}
        summary = {"name": "digits-lt", "seed": 0, "models": [figures], "tracking": {"uri": "sqlite:///x"}}
        store.write(json.dumps(summary).encode(), "runs", run_id, "run.json")
        store.write(b"<html>", "runs", run_id, "report.html")


def aged(root: Path, hours: float) -> None:
    """Make all files below a folder older."""
    then = time.time() - 3600 * hours
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))
