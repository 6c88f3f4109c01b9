"""What a run prints on standard output: tables, and what to type next."""

import math
import shlex
from pathlib import Path
from typing import Any

from flows.terminal import say, say_next, table
from flows.typed import Typed, as_typed

__all__ = [
    "print_comparison",
    "print_decision",
    "print_evaluation",
    "print_result",
    "print_side_by_side",
    "print_standing",
    "print_version",
]

FLOOR_STEP = 0.05


def print_result(result: dict[str, Any], typed: Typed, floor: float | None = None) -> None:
    """Print every model's figures, where things are, and what to type next; `floor` is that of the experiment."""
    names = ("H-mean>", "G-mean>", "lowest>", "acc.>", "many>", "medium>", "few>", "zero>")
    rows = []
    for row in result["models"]:
        figures = [row[key] for key in ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few")]
        cells = ["n/a" if value is None else f"{100 * value:.1f}" for value in figures]
        rows.append([row["name"], *cells, str(row["zero_recall_classes"])])
    styles = ["bold" if row["stage"] == "post_train" else "" for row in result["models"]]
    title = f"{result['name']}, seed {result['seed']}: every model on the way"
    table(title, ("model", *names), rows, styles=styles)
    say("Test split, percent. lowest: lowest recall; zero: classes with zero recall.\n")
    for row in result["lost_ingredients"]:
        lines = row["reason"].splitlines()
        reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"  # the report has all of it
        say(f"LOST: the ingredient of subset {row['subset']:02d}: {reason}")
    if result["lost_ingredients"]:
        say("The soup is made of the others (finetune.quorum); running again trains what was lost.\n")
    trained = ", ".join(result["trained_stages"])
    say(f"Trained: {trained}." if trained else "Nothing was trained: every model was found in the store.")
    say(f"Took {result['seconds']:.0f} s.\n")
    say(f"Report       {result['report']}")
    say(f"Final model  {result['final_model']}")
    say(f"MLflow       {result['tracking']['uri']} (run {result['tracking']['run_id']})\n")
    steps = [
        (typed.line("run", f"seed={result['seed'] + 1}"), "another seed; the data are not prepared again"),
        (typed.line("run", "post_train.epochs=20"), "only what follows the change is done again"),
        _promote(result["run_id"], result["models"][-1]["lowest_recall"], floor),
    ]
    if result["tracking"]["uri"].startswith("sqlite"):
        ui = f"{as_typed('mlflow')} ui --backend-store-uri {shlex.quote(result['tracking']['uri'])}"
        steps.append((ui, "every figure and file of the run"))
    say_next([*steps, (f"{as_typed('btm')} presets", "other experiments; docs/own-data.md: your own images")])


def _promote(run_id: str, lowest: float, floor: float | None, option: str = "") -> tuple[str, str]:
    """Return the command that has the gate judge a run's model, and what it is for.

    The first model of all is refused without a floor: that of the experiment, or half of its own lowest recall.
    """
    command = f"{as_typed('btm')} promote {run_id}{option}"
    if floor is not None:
        return command, "the model in use, if its worst classes are good enough"
    half = math.floor(lowest / 2 / FLOOR_STEP + 1e-9) * FLOOR_STEP
    return f"{command} --set promotion.lowest_recall={half:.2g}", "the model in use; the first one needs a floor"


def print_comparison(document: dict[str, Any]) -> None:
    """Print a comparison's table, its warnings and differences, and where the report is."""
    from btm_core.comparison import FIGURES, cell

    short = {"Lowest recall": "lowest", "Accuracy": "acc.", "Zero-recall classes": "zero"}
    headings = [*document["rows"][0]["labels"], *(f"{short.get(name, name)}>" for name in FIGURES.values())]
    rows = [[*row["labels"].values(), *(cell(key, row["summary"][key]) for key in FIGURES)] for row in document["rows"]]
    table(document["title"], headings, rows)
    seeds = ", ".join(map(str, document["seeds"]))
    say(f"{document['split'].capitalize()} split, percent; seeds {seeds}. ± is the standard deviation over runs.")
    for difference in document["differences"]:
        value = difference["figures"]["h_mean"]
        say(
            f"H-mean of {difference['second']} minus {difference['first']}: {100 * value['mean']:+.1f} points, "
            f"{100 * value['low']:+.1f} to {100 * value['high']:+.1f} over resampled test images (95 %)"
        )
    for warning in document["warnings"]:
        say(f"Warning: {warning}")
    say(f"\nReport       {document['report']}")
    say(f"Markdown     {document['markdown']}")


def print_decision(document: dict[str, Any]) -> None:
    """Print what the gate decided, every rule, and what that means."""
    name, version = document["model"], document["version"]
    told = {
        "promoted": f"PROMOTED: version {version} is the champion of {name}.",
        "forced": f"FORCED: version {version} is the champion of {name}, against the gate or without it.",
        "refused": f"REFUSED: version {version} of {name} stays a challenger.",
        "rolled_back": f"ROLLED BACK: version {version} is the champion of {name} again.",
    }
    if not document["changed"]:
        say(f"NOTHING TO DO: {document['reasons'][0]}.")
        return
    say(told[document["decision"]])
    before = document["champion_before"]
    say(f"Champion before: version {before['version']}, run {before['run_id']}." if before else "It had no champion.")
    if document["checks"]:
        say()
        for check in document["checks"]:
            say(f"  {'passed' if check['passed'] else 'FAILED'}  {check['rule']}: {check['text']}")
    else:
        say("\n".join(f"  {reason}" for reason in document["reasons"]))
    say(f"\nReport       {document['report']}")
    if document["decision"] in ("promoted", "forced", "rolled_back"):
        steps = [(_serve(f"models:/{name}@champion", document["mlflow"]), "answers requests")]
        if before:
            again = f"{as_typed('btm')} promote --rollback --model {shlex.quote(name)}"
            steps.append((again, f"version {before['version']} again"))
        say()
        say_next(steps)


def print_standing(document: dict[str, Any]) -> None:
    """Print the versions of a registered model, and which is in use."""
    rows = []
    for row in document["versions"]:
        cells = [row["version"], row["alias"] or "", row["run_id"] or "", row["decision"] or ""]
        rows.append([*cells, "; ".join(row["reasons"]) if row["decision"] == "refused" else ""])
    table(document["model"], ("version>", "alias", "run", "last decision", "reasons"), rows)


def print_version(document: dict[str, Any], lowest: float, floor: float | None) -> None:
    """Print a version that was registered, of that lowest recall, and what can be done with it."""
    say(f"Registered   {document['uri']} (run {document['run_id']})")
    say()
    promote = _promote(document["run_id"], lowest, floor, f" --model {shlex.quote(document['model'])}")
    say_next([(_serve(document["uri"], document["mlflow"]), "answers requests"), promote])


def print_evaluation(document: dict[str, Any]) -> None:
    """Print one model's figures and its lowest classes."""
    from btm_core.pages import percent
    from btm_core.side_by_side import FIGURES

    say(f"{document['name']}  ({document['kind']})\n")
    rows = [[heading, percent(document[name])] for name, heading in FIGURES.items() if document.get(name) is not None]
    rows.append(["Zero-recall classes", f"{document['zero_recall_classes']} of {len(document['classes']['name']):,}"])
    table("", ("figure", "%>"), rows)
    if document["lowest_classes"]:
        lowest = [
            [
                row["name"],
                percent(row["recall"]),
                str(row["train_images"]),
                str(row["test_images"]),
                ", ".join(f"{other['name']} ({other['images']})" for other in row["taken_for"]),
            ]
            for row in document["lowest_classes"]
        ]
        table("Lowest classes", ("class", "recall>", "training images>", "test images>", "taken for"), lowest)
    split, digest = document["split"], document["split_hash"][:12]
    say(f"{split.capitalize()} split ({digest}): {document['images']:,} images; recall and means in percent.")


def print_side_by_side(document: dict[str, Any], lost: int) -> None:
    """Print models side by side: the figures of each and of A, which classes lost most, and where the report is."""
    from btm_core.side_by_side import cautions, changes, lettered

    a, pairs = document["a"], lettered(document)
    for letter, model in {"A": a, **{letter: pair["b"] for letter, pair in pairs.items()}}.items():
        typed = f", {model['spec']}" if model["spec"] != model["name"] else ""
        say(f"{letter}  {model['name']}  ({model['kind']}{typed})")
    for letter, pair in pairs.items():
        say()
        _print_figures(pair, letter)
        say("\n".join([changes(pair, letter), *cautions(pair)]) + "\n")
        if pair["summary"]["worse"]:
            _print_lost(pair, letter, lost)
    say(f"{a['split'].capitalize()} split ({a['split_hash'][:12]}), percent; 95 % intervals over its images.")
    say(f"\nReport       {document['report']}")
    say(f"Markdown     {document['markdown']}")


def _print_figures(pair: dict[str, Any], letter: str) -> None:
    from btm_core.pages import signed
    from btm_core.side_by_side import FIGURES, cells

    summary = pair["summary"]
    rows = [[heading, *cells(summary[name])] for name, heading in FIGURES.items() if name in summary]
    a, b = (pair[side]["zero_recall_classes"] for side in ("a", "b"))
    rows.append(["Zero-recall classes", str(a), str(b), signed(b - a), ""])
    table(f"{letter} against A", ("figure", "A>", f"{letter}>", f"{letter} - A>", "95 % interval>"), rows)


def _print_lost(pair: dict[str, Any], letter: str, most: int) -> None:
    from btm_core.side_by_side import cells, most_lost

    rows = [
        [row["name"], str(row["train_images"]), str(row["test_images"]), *cells(row)] for row in most_lost(pair, most)
    ]
    headings = ("class", "training images>", "test images>", "A>", f"{letter}>", f"{letter} - A>", "95 % interval>")
    table("Classes that lost most", headings, rows)
    if len(pair["summary"]["worse"]) > most:
        say(f"... and {len(pair['summary']['worse']) - most:,} more that lost: see the report.\n")


def _serve(model: str, tracking: str) -> str:
    """Return the command that serves a registered model; MLflow looks for uvicorn on the PATH."""
    mlflow = as_typed("mlflow")
    path = "" if mlflow == "mlflow" else f"PATH={Path(mlflow).parent}:$PATH "
    database = f"MLFLOW_TRACKING_URI={tracking} " if tracking.startswith("sqlite:") else ""
    return f"{path}{database}mlflow models serve -m {shlex.quote(model)} --env-manager local"
