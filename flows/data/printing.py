"""What `btm data` prints on standard output."""

import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from btm_core.data.long_tail import FEW_BELOW, MANY_ABOVE
from btm_core.text_plots import long_tail_plot

__all__ = ["print_inspection", "print_prepared"]

WIDTH, ALWAYS_ALL = 80, frozenset({"refused", "missing", "unreadable"})


def print_inspection(document: dict[str, Any], most: int) -> None:
    """Print plot, splits, sizes and findings; of a finding at most so many items, but all unreadable images.

    `document` is that of `btm_core.data.inspection`, with `name`.
    """
    rows = document["per_class"]
    plain = not _can_draw()
    print(f"{document['name']}: training images a class, log scale\n")
    counts, names = [row["train"] for row in rows], [_shown(row["class"]) for row in rows]
    print(long_tail_plot(counts, names, WIDTH, plain=plain, paint=_paint if sys.stdout.isatty() else None))
    print()
    _print_splits(document["splits"])
    if document["images"] is not None:
        _print_images(document["images"])
    findings = document["findings"]
    if not findings:
        print("\nNothing was found that needs mending.")
    for finding in findings:
        print(f"\n{'!' if finding['serious'] else '-'} {_shown(finding['title'])}")
        shown = finding["items"] if finding["kind"] in ALWAYS_ALL else finding["items"][:most]
        for item in shown:
            print("    " + "\n      = ".join(map(_shown, item if isinstance(item, list) else [item])))
        if len(shown) < len(finding["items"]):
            print(f"    ... and {len(finding['items']) - len(shown):,} more: --most N, or --json")
        if finding["advice"]:
            print(textwrap.fill(_shown(finding["advice"]), 100, initial_indent="  ", subsequent_indent="  "))
    if "clean" in document:
        left_out = ", ".join(f"{count:,} of {split}" for split, count in document["clean"]["left_out"].items())
        folder = document["clean"]["folder"]
        print(f"\nLeft out: {left_out}. Use the lists with data.format=list, data.train={folder}/train.txt,")
        print(f"data.test={folder}/test.txt and data.class_names={folder}/classes.txt, and data.root as it is.")
    if any(finding["serious"] for finding in findings):
        print("\n!: a run refuses it, or would give wrong figures.")


def _shown(text: str) -> str:
    """Return a text as this terminal can show it: names of files and classes are anybody's, and may hold anything."""
    harmless = "".join(letter if letter.isprintable() else "?" for letter in text)
    encoding = sys.stdout.encoding or "ascii"
    return harmless.encode(encoding, "replace").decode(encoding)


def _paint(letters: str, count: int) -> str:
    """Colour by group: blue many, cyan medium, yellow few."""
    color = 34 if count > MANY_ABOVE else 36 if count >= FEW_BELOW else 33
    return f"\x1b[{color}m{letters}\x1b[0m"


def _can_draw() -> bool:
    try:
        "█┤…".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _print_splits(splits: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, safe_box=not _can_draw())
    table.add_column("split", no_wrap=True)
    headings = ("images", "classes", "largest", "median", "smallest", "factor", "many", "medium", "few")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in splits:
        numbers = [f"{row[key]:,}" for key in ("images", "classes", "largest")]
        numbers += [f"{row['median']:,g}", f"{row['smallest']:,}", f"{row['imbalance_factor']:,.0f}"]
        numbers += [f"{row[group + '_images']:,}" for group in ("many", "medium", "few")]
        table.add_row(row["split"], *numbers)
    Console(width=max(96, Console().width)).print(table)
    train = splits[0]
    print(
        f"Groups by training images: {train['many']:,} many (over 100), {train['medium']:,} medium (20 to 100), "
        f"{train['few']:,} few (under 20);\ntheir columns count images. factor: largest over smallest class."
    )


def _print_images(images: dict[str, Any]) -> None:
    print(f"\n{images['readable']:,} of {images['looked_at']:,} images can be used", end="")
    if not images["readable"]:
        print(".")
        return
    small, middle, large = ("x".join(map(str, images[key])) for key in ("smallest", "median", "largest"))
    if images["different"] == 1:
        print(f", all of {small} pixels.")
    else:
        side = images["shorter_side"]
        print(
            f", of {images['different']:,} sizes: {small} to {large} pixels, in the middle {middle};\n"
            f"98 % have a shorter side of {side['1']} to {side['99']} pixels."
        )
    print("Kinds: " + ", ".join(f"{k['images']:,} {k['format']} {k['mode']}" for k in images["kinds"]) + ".")


def print_prepared(document: dict[str, Any]) -> None:
    """Print what a complete data set holds, and where its manifest is."""
    print(f"{document['published'] or document['name']} is complete in {document['root'] or 'the package'}.")
    for name, split in document["splits"].items():
        counts = split["counts"]
        print(
            f"  {name:<10} {split['images']:>9,} images in {len(counts):,} classes, {max(counts):,} to {min(counts):,} "
            f"a class   {split['hash'][:12]}"
        )
    profile = document["profile"]
    groups = ", ".join(f"{profile[name]:,} {name}" for name in ("many", "medium", "few"))
    print(f"  classes by training images: {groups}")
    state = {"new": "written", "accepted": "written anew", "unchanged": f"unchanged since {document['written']}"}
    print(f"Manifest   {document['manifest']} ({state[document['state']]})")
