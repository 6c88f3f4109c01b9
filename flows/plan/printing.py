"""A plan on one screen."""

import shlex
from typing import Any

from flows.terminal import say, say_next, table
from flows.typed import Typed, as_typed

__all__ = ["print_plan"]


def print_plan(plan: dict[str, Any], typed: Typed) -> None:
    """Print a plan, and what runs it: what was typed."""
    _print_data(plan)
    say()
    if not plan["known"]:
        unread = plan["unread"]
        say(
            f"What the store holds of this is not known: {unread['files']:,} images ({_size(unread['bytes'])}) were "
            "never read on this machine,\nand what is made of them goes by their content. A run reads them first."
        )
    elif not plan["to_make"]:
        say("Nothing would be trained, and nothing made: all of it is in the store.")
    elif not plan["to_train"]:
        made = ", ".join(plan["to_make"])
        say(f"Nothing would be trained: every model is in the store. What would be made: {made}.")
    _print_stages(plan)
    _print_time(plan)
    _print_storage(plan)
    for warning in plan["warnings"]:
        label = "Hint: " if warning["hint"] else "Warning: "
        say(f"\n{label}{warning['key']}: {warning['found']}.\n{' ' * len(label)}{warning['todo']}.")
    say()
    say_next(_next(plan, typed))


def _next(plan: dict[str, Any], typed: Typed) -> list[tuple[str, str]]:
    """Return the run; where there is nothing for it to do, what else there is."""
    if plan["known"] and not plan["to_make"]:
        store = " ".join(
            ["store ls", *(["--store", shlex.quote(str(url))] if (url := (typed.flags or {}).get("store")) else [])]
        )
        seed = typed.line("run", f"seed={plan['seed'] + 1}")
        return [(f"{as_typed('btm')} {store}", "the runs that have it"), (seed, "another seed")]
    if plan["known"] and not plan["to_train"]:
        return [(typed.line("run"), "makes the rest, and the report")]
    return [(typed.line("run"), "")]


def _print_data(plan: dict[str, Any]) -> None:
    data, network, subsets = plan["data"], plan["network"], plan["subsets"]
    tail = data["profile"]
    splits = ", ".join(f"{count:,} {name}" for name, count in data["splits"].items())
    say(f"{plan['name']}, seed {plan['seed']}")
    say(
        f"Data      {splits} images in {tail['classes']:,} classes; {tail['largest']:,} to {tail['smallest']:,} a "
        f"class (imbalance factor {tail['imbalance_factor']:.0f}); {tail['many']:,} many, {tail['medium']:,} medium, "
        f"{tail['few']:,} few"
    )
    say(
        f"Network   {network['backbone']}, {network['precision']}, {data['size']} px: {network['parameters']:,} "
        f"parameters, a checkpoint {_size(network['checkpoint_bytes'])}"
    )
    how = "given by lists" if subsets["listed"] else f"{subsets['shots']} shots"
    say(f"Subsets   {subsets['num_subsets']} of {subsets['images']:,} images each ({how})")
    if subsets["short_classes"]:
        worst = ", ".join(f"{row['class']} ({row['images']:,})" for row in subsets["worst"])
        more = ", ..." if subsets["short_classes"] > len(subsets["worst"]) else ""
        say(f"          {subsets['short_classes']:,} classes have fewer images than that: {worst}{more}")
    say(f"Store     {plan['store']}")


def _print_stages(plan: dict[str, Any]) -> None:
    names = ("to do>", "epochs>", "batch>", "opt. steps>", "images>", "time>", "hours>")
    rows = [[row["stage"], *_cells(row, plan["known"])] for row in plan["stages"]]
    styles = ["dim" if not row["to_do"] else "bold" if row["trains"] else "" for row in plan["stages"]]
    table("", ("stage", *names, "where"), rows, styles=styles)
    for row in plan["stages"]:
        for item in row["items"]:
            if item["epochs_done"]:
                say(f"{row['stage']} {item['name']} goes on after epoch {item['epochs_done']} of {item['epochs']}.")


def _cells(row: dict[str, Any], known: bool) -> list[str]:
    """Return what a stage's row shows after its name."""
    if not row["to_do"]:
        return ["cached", *[""] * 7]
    shown = [row["epochs"], row["batch_size"], row["optimizer_steps"] or None, row["images"] or None]
    to_do = f"{row['to_do']:,}" if not row["found"] else f"{row['to_do']:,} of {row['steps']:,}"
    packs = f", packs of {row['packs']}" if row["packs"] > 1 else ""
    hours = "" if row["seconds"] is None or not row["hours"] else _hours(row["hours"])
    times = ["" if row["seconds"] is None else _duration(row["wall_seconds"]), hours]
    return [to_do if known else "?", *("" if n is None else f"{n:,}" for n in shown), *times, row["where"] + packs]


def _print_time(plan: dict[str, Any]) -> None:
    if not plan["to_make"]:
        return
    time = plan["time"]
    asked = [row for row in plan["stages"] if row["to_do"]]
    lacking = [row["stage"] for row in asked if row["seconds"] is None and row["trains"]]
    units = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
    hours = " and ".join(f"{_hours(time[key])} {unit}" for key, unit in units.items() if time[key])
    without = f"; {', '.join(time['missing'])} not counted" if time["missing"] else ""
    if lacking:
        say(f"Time      not known: nothing like {', '.join(lacking)} was measured in this store before.")
        if plan["engine"] == "local":
            say("          --probe measures a few steps now.")
    elif not hours:
        say(f"Time      not known of {', '.join(time['missing'])}; nothing else is to be done.")
    elif time["wall_seconds"] is None:
        say(f"Time      {hours}{without}; from start to end it goes by the number of workers (--workers).")
    else:
        say(f"Time      about {_duration(time['wall_seconds'])} from start to end, {hours}{without}.")
    for row in asked:
        if row["estimate"] is not None:
            say(f"          {row['stage']}: {_source(row['estimate'])}")


def _source(estimate: dict[str, Any]) -> str:
    """Return in words where an estimate comes from."""
    sources, several = estimate["sources"], len(estimate["sources"]) > 1
    spread = f" ({_rate(estimate['slowest'])} to {_rate(estimate['fastest'])})" if several else ""
    more = f" and {len(sources) - 1} more" if several else ""
    differs = f"; with another {', '.join(estimate['differs'])}" if estimate["differs"] else ""
    return f"{_rate(estimate['images_per_second'])} images/s{spread} by {sources[0]}{more}{differs}"


def _print_storage(plan: dict[str, Any]) -> None:
    storage = plan["storage"]
    if not storage["adds_bytes"]:
        return
    free = "free space not known" if storage["free_bytes"] is None else f"{_size(storage['free_bytes'])} free"
    parts = [f"{storage['models']} checkpoints {_size(storage['models_bytes'])}"]
    for key, label in (("data_bytes", "data"), ("subsets_bytes", "subsets"), ("evaluations_bytes", "predictions")):
        parts += [f"{label} {_size(storage[key])}"] if storage[key] else []
    states = storage["while_training_bytes"]
    extra = f"; up to {_size(states)} more while it trains, to go on from" if states else ""
    say(f"Storage   adds {_size(storage['adds_bytes'])} ({', '.join(parts)}){extra}; {free}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _rate(images_per_second: float | None) -> str:
    return "?" if images_per_second is None else f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{_hours(seconds / 3600)} h"
