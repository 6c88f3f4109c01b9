"""The documents of `btm store` as people read them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from flows.store.documents import FIGURES
from flows.terminal import say, table

__all__ = [
    "print_artifact",
    "print_forgotten",
    "print_garbage",
    "print_listing",
    "print_run",
    "print_verdict",
    "size",
]

SHOWN = 40
"""Most lines of a list of problems or of garbage; --json has all."""


def print_listing(document: dict[str, Any]) -> None:
    """Print the tables of `ls`, and the totals."""
    if "runs" in document:
        rows = []
        for r in document["runs"]:
            facts = (r["run_id"], _minute(r["when"]), r["experiment"] or "?", r["seed"], r["state"])
            rows.append([*facts, r["artifacts"], size(r["bytes"])])
        _table(("run", "when", "experiment", "seed>", "state", "artifacts>", "size>"), rows)
        for r in document["runs"]:
            if r["problem"]:
                say(f"{r['run_id']}: {r['problem']}. What it needs is not known, so btm store gc deletes nothing.")
    if "artifacts" in document:
        rows = [
            [a["address"], size(a["bytes"]), age(a["age_hours"]), a["runs"] or "", _short(a["notes"])]
            for a in document["artifacts"]
        ]
        _table(("artifact", "size>", "age>", "runs>", ""), rows)
    totals = document["totals"]
    found = f"{_many(totals['runs'], 'run')}, {_many(totals['artifacts'], 'artifact')}"
    say(f"{document['store']}: {found}, {size(totals['bytes'])}.")
    if totals["unreferenced"]:
        say(
            f"No run refers to {_many(totals['unreferenced'], 'artifact')}, {size(totals['unreferenced_bytes'])}: "
            "btm store gc tells which of them may go."
        )
    if totals["half_or_damaged"]:
        say(f"Half or damaged: {totals['half_or_damaged']}. They count as absent, and are made again when needed.")
    if totals["stages_under_way"]:
        stages = _many(totals["stages_under_way"], "stage")
        say(f"State of {stages} that did not end, or not yet: {size(totals['partial_bytes'])}.")
    if totals["temporary_files"] or totals["unfinished_uploads"]:
        files, uploads = totals["temporary_files"], totals["unfinished_uploads"]
        say(f"{_many(files, 'temporary file')}, {_many(uploads, 'unfinished upload')}.")


def print_run(document: dict[str, Any]) -> None:
    """Print a run."""
    say(f"Run          {document['run_id']}")
    say(f"Experiment   {document['experiment'] or '?'}, seed {document['seed']}")
    say(f"Started      {_minute(document['when'])}")
    say(f"State        {document['state']}")
    say(f"Refers to    {_many(len(document['artifacts']), 'artifact')}, {size(document['bytes'])}")
    say(f"Report       {document['report'] or 'none'}")
    for name, url in document["files"].items():
        if name.endswith(".png"):
            say(f"Figure       {url}")
    if document["models"]:
        rows = [
            [m["name"], *("n/a" if m[key] is None else f"{100 * m[key]:.1f}" for key in FIGURES)]
            for m in document["models"]
        ]
        _table(("model", *(f"{name}>" for name in FIGURES.values())), rows)
    rows = [
        [a["address"], size(a["bytes"]), _by_stage(a["parents"]), _short(a["notes"])] for a in document["artifacts"]
    ]
    _table(("artifact", "size>", "made from", ""), rows)


def print_artifact(document: dict[str, Any]) -> None:
    """Print an artifact."""
    say(f"Artifact   {document['url']}")
    say(f"Size       {size(document['bytes'])}")
    say(f"Age        {age(document['age_hours'])}")
    say(f"Notes      {'; '.join(document['notes']) or 'whole, as far as can be seen without reading it'}")
    _table(("file", "size>", "sha256"), [[f["name"], size(f["bytes"]), f["sha256"] or ""] for f in document["files"]])
    for role, parent in document["parents"].items():
        say(f"Made from  {parent} ({role})")
    for child in document["children"][:SHOWN]:
        say(f"Made of it {child}")
    for run_id in document["runs"][:SHOWN]:
        say(f"Run        {run_id}")
    manifest = document["manifest"]
    if manifest is not None:
        versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
        say(f"Versions   {versions or '?'}")
        say("Configuration:")
        say(json.dumps(manifest["config"], indent=1))


def print_verdict(document: dict[str, Any]) -> None:
    """Print what verifying found, and what to do."""
    for finding in document["damaged"]:
        users = f" (runs: {', '.join(finding['runs'][:3])})" if finding["runs"] else ""
        say(f"DAMAGED  {finding['address']}{users}")
        for problem in finding["problems"]:
            say(f"         {problem}")
    for path in document["leftovers"][:SHOWN]:
        say(f"leftover {path}")
    if len(document["leftovers"]) > SHOWN:
        say(f"         ... and {len(document['leftovers']) - SHOWN} more (--json lists all)")
    seconds = document["seconds"]
    rate = f"{size(document['bytes'])} read in {seconds:.1f} s, {size(document['bytes'] / max(seconds, 1e-9))}/s"
    say(f"{_many(document['artifacts'], 'artifact')}: {rate}.")
    if document["leftovers"]:
        say("Leftovers harm nobody; btm store gc deletes them when they are old enough.")
    count, left = len(document["damaged"]), sum(not finding["absent"] for finding in document["damaged"])
    if not count:
        say("All are whole.")
        return
    say(f"{count} {'is' if count == 1 else 'are'} not whole.")
    again = f"The next run of the same command makes {'it' if count == 1 else 'them'} again"
    marking = f", once what still counts as whole ({left}) is marked: btm store verify --mark" if left else "."
    say(again + marking)


def print_garbage(document: dict[str, Any]) -> None:
    """Print what would be, or was, deleted, and why."""
    items = document["garbage"]
    if items:
        rows = [[i["kind"], i["name"], size(i["bytes"]), age(i["age_hours"]), i["reason"]] for i in items[:SHOWN]]
        _table(("", "name", "size>", "age>", "why"), rows)
    if len(items) > SHOWN:
        say(f"... and {len(items) - SHOWN} more (--json lists all)")
    for item in document["spared"]:
        say(f"Spared: {item['name']}: a run has taken it in the meantime, or it has changed.")
    needed = _many(len(document["registry"]["runs"]), "run")
    say(f"Registered models: {document['registry']['asked']}; {needed} kept for them.")
    what = f"{_many(len(items), 'thing')}, {size(document['bytes'])}"
    if document["deleted"]:
        say(f"Deleted {what}; artifacts now take {size(document['kept_bytes'])}.")
    elif items:
        say(f"Would delete {what}, older than {document['grace_hours']:g} h. Do it with: btm store gc --delete")
    else:
        say(f"Nothing older than {document['grace_hours']:g} h may go.")


def print_forgotten(document: dict[str, Any]) -> None:
    """Print which runs are forgotten, and what that frees."""
    verb = "Forgotten:" if document["deleted"] else "Would forget:"
    for run in document["runs"]:
        say(f"{verb} {run['run_id']} ({run['experiment'] or '?'}, seed {run['seed']}, {run['state']})")
    freed = _many(len(document["freed_artifacts"]), "artifact")
    say(f"No other run refers to {freed}, {size(document['freed_bytes'])}.")
    if document["deleted"]:
        say("btm store gc deletes them, once they are older than its grace period.")
    else:
        say("The reports are deleted for good. Do it with: btm store rm ... --delete")


def size(count: float) -> str:
    """Return bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(hours: float) -> str:
    """Return an age in words."""
    if hours >= 48:
        return f"{hours / 24:.0f} d"
    return f"{hours:.0f} h" if hours >= 2 else f"{max(hours, 0) * 60:.0f} min"


def _short(notes: Sequence[str]) -> str:
    """Return what is wrong in a word each; `btm store show` has the rest."""
    return ", ".join(note.partition(":")[0] for note in notes)


def _by_stage(addresses: Sequence[str]) -> str:
    """Return how many of each stage there are."""
    stages = Counter(address.partition("/")[0] for address in addresses)
    return ", ".join(stage if count == 1 else f"{count} {stage}" for stage, count in stages.items())


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _minute(when: str) -> str:
    return datetime.fromisoformat(when).strftime("%Y-%m-%d %H:%M")


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as wide as it is: an address that is cut off or folded helps nobody."""
    table("", headings, [["" if value is None else str(value) for value in row] for row in rows], whole=True)
