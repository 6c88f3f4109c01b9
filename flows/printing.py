"""What a run prints on standard output: tables, and what to type next."""

import shutil
import sys
from pathlib import Path
from typing import Any

__all__ = ["as_typed", "print_comparison", "print_result"]


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
    trained = ", ".join(result["trained_stages"])
    print(f"Trained: {trained}." if trained else "Nothing was trained: every model was found in the store.")
    print(f"Took {result['seconds']:.0f} s.\n")
    print(f"Report       {result['report']}")
    print(f"Final model  {result['final_model']}")
    print(f"MLflow       {result['tracking']['uri']} (run {result['tracking']['run_id']})\n")
    print("What to type next:")
    print(f"  {command} --set seed={result['seed'] + 1}                # another seed; the data are not prepared again")
    print(f"  {command} --set post_train.epochs=20  # only what follows the change is done again")
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


def as_typed(command: str) -> str:
    """Return what a user has to type for a command of this environment: its name alone if the environment is active."""
    own = Path(sys.executable).with_name(command)
    found = shutil.which(command)
    if found and Path(found) == own:
        return command
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)
