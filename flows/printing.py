"""What a run prints on standard output: tables, and what to type next."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "as_typed",
    "print_comparison",
    "print_decision",
    "print_evaluation",
    "print_result",
    "print_side_by_side",
    "print_standing",
    "print_version",
]


def print_result(result: dict[str, Any], command: str) -> None:
    """Print every model's figures, where things are, and what to type next; `command` is what was typed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{result['name']}, seed {result['seed']}: every model on the way"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("H-mean", "G-mean", "lowest", "acc.", "many", "medium", "few", "zero"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["models"]:
        figures = [row[key] for key in ("h_mean", "g_mean", "lowest_recall", "accuracy", "many", "medium", "few")]
        cells = ["n/a" if value is None else f"{100 * value:.1f}" for value in figures]
        style = "bold" if row["stage"] == "post_train" else ""
        table.add_row(row["name"], *cells, str(row["zero_recall_classes"]), style=style)
    Console(width=max(80, Console().width)).print(table)
    print("Test split, percent. lowest: lowest recall; zero: classes with zero recall.\n")
    for row in result["lost_ingredients"]:
        lines = row["reason"].splitlines()
        reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"  # the report has all of it
        print(f"LOST: the ingredient of subset {row['subset']:02d}: {reason}")
    if result["lost_ingredients"]:
        print("The soup is made of the others (finetune.quorum); running again trains what was lost.\n")
    trained = ", ".join(result["trained_stages"])
    print(f"Trained: {trained}." if trained else "Nothing was trained: every model was found in the store.")
    print(f"Took {result['seconds']:.0f} s.\n")
    print(f"Report       {result['report']}")
    print(f"Final model  {result['final_model']}")
    print(f"MLflow       {result['tracking']['uri']} (run {result['tracking']['run_id']})\n")
    print("What to type next:")
    print(f"  {command} --set seed={result['seed'] + 1}                # another seed; the data are not prepared again")
    print(f"  {command} --set post_train.epochs=20  # only what follows the change is done again")
    print(f"  {as_typed('btm')} promote {result['run_id']}   # the model in use, if its worst classes are good enough")
    if result["tracking"]["uri"].startswith("sqlite"):
        print(f"  {as_typed('mlflow')} ui --backend-store-uri {result['tracking']['uri']}")
    print(f"  {as_typed('btm')} presets   # other experiments; README.md tells how to run your own data")


def print_comparison(document: dict[str, Any]) -> None:
    """Print a comparison's table, its warnings and differences, and where the report is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from btm_core.comparison import FIGURES, cell

    table = Table(title=document["title"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in document["rows"][0]["labels"]:
        table.add_column(column, no_wrap=True)
    short = {"Lowest recall": "lowest", "Accuracy": "acc.", "Zero-recall classes": "zero"}
    for heading in FIGURES.values():
        table.add_column(short.get(heading, heading), justify="right", no_wrap=True)
    for row in document["rows"]:
        table.add_row(*row["labels"].values(), *(cell(name, row["summary"][name]) for name in FIGURES))
    Console(width=max(130, Console().width)).print(table)
    seeds = ", ".join(map(str, document["seeds"]))
    print(f"{document['split'].capitalize()} split, percent; seeds {seeds}. ± is the standard deviation over runs.")
    for difference in document["differences"]:
        value = difference["figures"]["h_mean"]
        print(
            f"H-mean of {difference['second']} minus {difference['first']}: {100 * value['mean']:+.1f} points, "
            f"{100 * value['low']:+.1f} to {100 * value['high']:+.1f} over resampled test images (95 %)"
        )
    for warning in document["warnings"]:
        print(f"Warning: {warning}")
    print(f"\nReport       {document['report']}")
    print(f"Markdown     {document['markdown']}")


def print_decision(document: dict[str, Any]) -> None:
    """Print what the gate decided, every rule, and what that means."""
    name, version = document["model"], document["version"]
    told = {
        "promoted": f"PROMOTED: version {version} is the champion of {name}.",
        "forced": f"FORCED: version {version} is the champion of {name}, against the gate or without it.",
        "refused": f"REFUSED: version {version} of {name} stays a challenger.",
        "rolled_back": f"ROLLED BACK: version {version} is the champion of {name} again.",
    }
    unchanged = document["decision"] == "promoted" and not document["checks"]
    if unchanged:
        print(f"NOTHING TO DO: {document['reasons'][0]}.")
        return
    print(told[document["decision"]])
    before = document["champion_before"]
    print(f"Champion before: version {before['version']}, run {before['run_id']}." if before else "It had no champion.")
    if document["checks"]:
        print()
        for check in document["checks"]:
            print(f"  {'passed' if check['passed'] else 'FAILED'}  {check['rule']}: {check['text']}")
    else:
        print(*(f"  {reason}" for reason in document["reasons"]), sep="\n")
    print(f"\nReport       {document['report']}")
    if document["decision"] in ("promoted", "forced", "rolled_back"):
        print("\nWhat to type next:")
        print(f"  {_serve(f'models:/{name}@champion', document['mlflow'])}")
        if before:
            again = f"--rollback --model {shlex.quote(name)}   # version {before['version']} again"
            print(f"  {as_typed('btm')} promote {again}")


def print_standing(document: dict[str, Any]) -> None:
    """Print the versions of a registered model, and which is in use."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=document["model"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("version", "alias", "run", "last decision", "reasons"):
        table.add_column(column, no_wrap=column != "reasons")
    for row in document["versions"]:
        cells = [row["version"], row["alias"] or "", row["run_id"] or "", row["decision"] or ""]
        table.add_row(*cells, "; ".join(row["reasons"]) if row["decision"] == "refused" else "")
    Console(width=max(100, Console().width)).print(table)


def print_version(document: dict[str, Any]) -> None:
    """Print a version that was registered, and what can be done with it."""
    print(f"Registered   {document['uri']} (run {document['run_id']})")
    print("\nWhat to type next:")
    print(f"  {_serve(document['uri'], document['mlflow'])}")
    print(f"  {as_typed('btm')} promote {document['run_id']} --model {shlex.quote(document['model'])}")


def print_evaluation(document: dict[str, Any]) -> None:
    """Print one model's figures and its lowest classes."""
    from btm_core.pages import percent
    from btm_core.side_by_side import FIGURES

    print(f"{document['name']}  ({document['kind']})\n")
    rows = [[heading, percent(document[name])] for name, heading in FIGURES.items() if document.get(name) is not None]
    rows.append(["Zero-recall classes", f"{document['zero_recall_classes']} of {len(document['classes']['name']):,}"])
    _print_table("", ("figure", "%"), rows)
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
        _print_table("Lowest classes", ("class", "recall", "training images", "test images", "taken for"), lowest)
    split, digest = document["split"], document["split_hash"][:12]
    print(f"{split.capitalize()} split ({digest}): {document['images']:,} images; recall and means in percent.")


def print_side_by_side(document: dict[str, Any], lost: int) -> None:
    """Print models side by side: the figures of each and of A, which classes lost most, and where the report is."""
    from btm_core.side_by_side import LETTERS, cautions, changes

    a, lettered = document["a"], dict(zip(LETTERS, [document, *document["others"]], strict=False))
    for letter, model in {"A": a, **{letter: pair["b"] for letter, pair in lettered.items()}}.items():
        typed = f", {model['spec']}" if model["spec"] != model["name"] else ""
        print(f"{letter}  {model['name']}  ({model['kind']}{typed})")
    for letter, pair in lettered.items():
        print()
        _print_figures(pair, letter)
        print("\n".join([changes(pair, letter), *cautions(pair)]) + "\n")
        if pair["summary"]["worse"]:
            _print_lost(pair, letter, lost)
    print(f"{a['split'].capitalize()} split ({a['split_hash'][:12]}), percent; 95 % intervals over its images.")
    print(f"\nReport       {document['report']}")
    print(f"Markdown     {document['markdown']}")


def _print_figures(pair: dict[str, Any], letter: str) -> None:
    from btm_core.pages import signed
    from btm_core.side_by_side import FIGURES, cells

    summary = pair["summary"]
    rows = [[heading, *cells(summary[name])] for name, heading in FIGURES.items() if name in summary]
    a, b = (pair[side]["zero_recall_classes"] for side in ("a", "b"))
    rows.append(["Zero-recall classes", str(a), str(b), signed(b - a), ""])
    _print_table(f"{letter} against A", ("figure", "A", letter, f"{letter} - A", "95 % interval"), rows)


def _print_lost(pair: dict[str, Any], letter: str, most: int) -> None:
    from btm_core.side_by_side import cells, most_lost

    rows = [
        [row["name"], str(row["train_images"]), str(row["test_images"]), *cells(row)] for row in most_lost(pair, most)
    ]
    headings = ("class", "training images", "test images", "A", letter, f"{letter} - A", "95 % interval")
    _print_table("Classes that lost most", headings, rows)
    if len(pair["summary"]["worse"]) > most:
        print(f"... and {len(pair['summary']['worse']) - most:,} more that lost: see the report.\n")


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: names on the left, numbers on the right."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=bool(number))
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=max(100, Console().width)).print(table)


def _serve(model: str, tracking: str) -> str:
    """Return the command that serves a registered model; MLflow looks for uvicorn on the PATH."""
    mlflow = as_typed("mlflow")
    path = "" if mlflow == "mlflow" else f"PATH={Path(mlflow).parent}:$PATH "
    database = f"MLFLOW_TRACKING_URI={tracking} " if tracking.startswith("sqlite:") else ""
    return f"{path}{database}mlflow models serve -m {shlex.quote(model)} --env-manager local"


def as_typed(command: str) -> str:
    """Return what a user has to type for a command of this environment: its name alone if the environment is active."""
    own = Path(sys.executable).with_name(command)
    found = shutil.which(command)
    if found and Path(found) == own:
        return command
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)
