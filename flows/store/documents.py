"""What `btm store` has to tell, as plain documents: `--json` prints them as they are, `printing` as tables."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from btm_core.errors import StoreError
from btm_core.storage import Store
from tasks.housekeeping.garbage import Garbage, Registered, is_live
from tasks.housekeeping.inventory import Inventory, StoredArtifact, StoredRun, name_of

__all__ = ["FIGURES", "artifact_document", "forgotten_document", "garbage_document", "listing", "run_document"]

FIGURES = {"h_mean": "H-mean", "g_mean": "G-mean", "lowest_recall": "lowest", "accuracy": "acc."}


def listing(inventory: Inventory, runs: bool, artifacts: bool) -> dict[str, Any]:
    """Return what `ls` tells."""
    document: dict[str, Any] = {"store": inventory.url, "now": inventory.now.isoformat(timespec="seconds")}
    if runs:
        rows = sorted(inventory.runs.values(), key=lambda run: run.when)
        document["runs"] = [_run_row(inventory, run) for run in rows]
    if artifacts:
        document["artifacts"] = [_artifact_row(inventory, inventory.artifacts[a]) for a in sorted(inventory.artifacts)]
    whole = [artifact for artifact in inventory.artifacts.values() if artifact.problem is None]
    partial = [fact for facts in inventory.partial.values() for fact in facts]
    unused = [a for a in inventory.artifacts.values() if a.address not in inventory.users]
    document["totals"] = {
        "runs": len(inventory.runs),
        "artifacts": len(inventory.artifacts),
        "bytes": sum(artifact.size for artifact in inventory.artifacts.values()),
        "unreferenced": len(unused),
        "unreferenced_bytes": sum(artifact.size for artifact in unused),
        "half_or_damaged": len(inventory.artifacts) - len(whole),
        "stages_under_way": len(inventory.partial),
        "partial_bytes": sum(fact.size for fact in partial),
        "temporary_files": len(inventory.temporary),
        "unfinished_uploads": len(inventory.uploads),
    }
    return document


def _run_row(inventory: Inventory, run: StoredRun) -> dict[str, Any]:
    needed = [inventory.artifacts[a] for a in inventory.needed_by(run) if a in inventory.artifacts]
    dead = run.state == "running" and not is_live(run, inventory.now, timedelta(0))
    return {
        "run_id": run.run_id,
        "when": run.when,
        "experiment": run.name,
        "seed": run.seed,
        "state": "died" if dead else run.state,
        "artifacts": len(needed),
        "bytes": sum(artifact.size for artifact in needed),
        "problem": run.problem,
    }


def _artifact_row(inventory: Inventory, artifact: StoredArtifact) -> dict[str, Any]:
    surplus = f"{len(artifact.surplus)} surplus files" if artifact.surplus else None
    users = inventory.users.get(artifact.address, [])
    notes = [note for note in (artifact.problem, surplus, None if users else "unreferenced") if note]
    return {
        "address": artifact.address,
        "stage": artifact.address.partition("/")[0],
        "bytes": artifact.size,
        "files": len(artifact.files),
        "modified": artifact.modified.isoformat(timespec="seconds"),
        "age_hours": round((inventory.now - artifact.modified) / timedelta(hours=1), 2),
        "runs": len(users),
        "notes": notes,
    }


def run_document(inventory: Inventory, run_id: str, store: Store) -> dict[str, Any]:
    """Return what `show` tells of a run. Raises StoreError if its record cannot be understood."""
    run = inventory.runs[run_id]
    if run.problem is not None:
        raise StoreError(
            f"run {run_id} cannot be shown: {run.problem}; mend it, or give it up with: btm store rm {run_id} --delete"
        )
    rows = []
    for address in sorted(inventory.needed_by(run)):
        artifact = inventory.artifacts.get(address)
        if artifact is None:
            state = "never made" if address in run.wanted else "gone"
            rows.append({"address": address, "bytes": 0, "parents": [], "notes": [state]})
            continue
        row = _artifact_row(inventory, artifact)
        rows.append({"address": address, "bytes": row["bytes"], "parents": artifact.parents, "notes": row["notes"]})
    files = {name_of(fact): store.locate(fact.path) for fact in run.files}
    reports = [files[name] for name in ("report.html", "comparison.html") if name in files]
    return {
        "store": inventory.url,
        **_run_row(inventory, run),
        "report": reports[0] if reports else None,
        "files": files,
        "tracking": run.tracking,
        "models": [model.model_dump() for model in run.models],
        "artifacts": rows,
    }


def artifact_document(inventory: Inventory, address: str) -> dict[str, Any]:
    """Return what `show` tells of an artifact."""
    artifact = inventory.artifacts[address]
    manifest = artifact.manifest
    digests = (
        {}
        if manifest is None
        else {manifest.paths.get(name, name): digest for name, (digest, _) in manifest.all_files.items()}
    )
    files = [{"name": name_of(f), "bytes": f.size, "sha256": digests.get(name_of(f))} for f in artifact.files]
    return {
        "store": inventory.url,
        "url": f"{inventory.url}/artifacts/{address}",
        **_artifact_row(inventory, artifact),
        "files": files,
        "parents": {} if manifest is None else manifest.parents,
        "children": sorted(other for other, parents in inventory.parents.items() if address in parents),
        "runs": inventory.users.get(address, []),
        "manifest": None if manifest is None else manifest.model_dump(mode="json"),
    }


def garbage_document(
    inventory: Inventory,
    grace: float,
    registered: Registered,
    found: Sequence[Garbage],
    spared: Sequence[Garbage],
    *,
    deleted: bool,
) -> dict[str, Any]:
    """Return what `gc` tells."""

    def rows(items: Iterable[Garbage]) -> list[dict[str, Any]]:
        return [
            {
                "kind": item.kind,
                "name": item.name,
                "reason": item.reason,
                "bytes": item.size,
                "files": [fact.path for fact in item.files],
                "age_hours": round((inventory.now - item.modified) / timedelta(hours=1), 2),
            }
            for item in sorted(items, key=lambda item: (item.kind, item.name))
        ]

    return {
        "store": inventory.url,
        "now": inventory.now.isoformat(timespec="seconds"),
        "grace_hours": grace,
        "registry": {"asked": registered.asked, "runs": dict(registered.runs), "addresses": dict(registered.addresses)},
        "deleted": deleted,
        "garbage": rows(found),
        "spared": rows(spared),
        "bytes": sum(item.size for item in found),
        "kept_bytes": sum(a.size for a in inventory.artifacts.values())
        - sum(item.size for item in found if item.kind in ("artifact", "half", "surplus")),
    }


def forgotten_document(inventory: Inventory, run_ids: Sequence[str], *, deleted: bool) -> dict[str, Any]:
    """Return what `rm` tells: the runs, and what only they refer to."""
    chosen = set(run_ids)
    only = [
        artifact
        for address, artifact in inventory.artifacts.items()
        if (users := inventory.users.get(address)) and set(users) <= chosen
    ]
    return {
        "store": inventory.url,
        "runs": [_run_row(inventory, inventory.runs[run_id]) for run_id in run_ids],
        "deleted": deleted,
        "freed_artifacts": sorted(artifact.address for artifact in only),
        "freed_bytes": sum(artifact.size for artifact in only),
    }
