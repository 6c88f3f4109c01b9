"""What `btm data` prints on standard output."""

import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from btm_core.data.long_tail import FEW_BELOW, MANY_ABOVE
from btm_core.text_plots import long_tail_plot
from flows.terminal import say, shown, table, utf8

__all__ = ["print_inspection", "print_prepared"]

WIDTH, ALWAYS_ALL = 80, frozenset({"refused", "missing", "unreadable"})


def print_inspection(document: dict[str, Any], most: int) -> None:
    """Print plot, splits, sizes and findings; of a finding at most so many items, but all unreadable images.

    `document` is that of `btm_core.data.inspection`, with `name`.
    """
    rows = document["per_class"]
    plain = not utf8()
    say(f"{document['name']}: training images a class, log scale\n")
    counts, names = [row["train"] for row in rows], [shown(row["class"]) for row in rows]
    print(long_tail_plot(counts, names, WIDTH, plain=plain, paint=_paint if sys.stdout.isatty() else None))
    say()
    _print_splits(document["splits"])
    if document["images"] is not None:
        _print_images(document["images"])
    findings = document["findings"]
    if not findings:
        say("\nNothing was found that needs mending.")
    for finding in findings:
        say(f"\n{'!' if finding['serious'] else '-'} {shown(finding['title'])}")
        told = finding["items"] if finding["kind"] in ALWAYS_ALL else finding["items"][:most]
        for item in told:
            say("    " + "\n      = ".join(map(shown, item if isinstance(item, list) else [item])))
        if len(told) < len(finding["items"]):
            say(f"    ... and {len(finding['items']) - len(told):,} more: --most N, or --json")
        if finding["advice"]:
            say(textwrap.fill(shown(finding["advice"]), 100, initial_indent="  ", subsequent_indent="  "))
    if "clean" in document:
        left_out = ", ".join(f"{count:,} of {split}" for split, count in document["clean"]["left_out"].items())
        folder = document["clean"]["folder"]
        say(f"\nLeft out: {left_out}. Use the lists with data.format=list, data.train={folder}/train.txt,")
        say(f"data.test={folder}/test.txt and data.class_names={folder}/classes.txt, and data.root as it is.")
    if any(finding["serious"] for finding in findings):
        say("\n!: a run refuses it, or would give wrong figures.")


def _paint(letters: str, count: int) -> str:
    """Colour by group: blue many, cyan medium, yellow few."""
    color = 34 if count > MANY_ABOVE else 36 if count >= FEW_BELOW else 33
    return f"\x1b[{color}m{letters}\x1b[0m"


def _print_splits(splits: Sequence[dict[str, Any]]) -> None:
    headings = ("images", "classes", "largest", "median", "smallest", "factor", "many", "medium", "few")
    rows = []
    for row in splits:
        numbers = [f"{row[key]:,}" for key in ("images", "classes", "largest")]
        numbers += [f"{row['median']:,g}", f"{row['smallest']:,}", f"{row['imbalance_factor']:,.0f}"]
        numbers += [f"{row[group + '_images']:,}" for group in ("many", "medium", "few")]
        rows.append([row["split"], *numbers])
    table("", ("split", *(f"{heading}>" for heading in headings)), rows)
    train = splits[0]
    say(
        f"Groups by training images: {train['many']:,} many (over 100), {train['medium']:,} medium (20 to 100), "
        f"{train['few']:,} few (under 20);\ntheir columns count images. factor: largest over smallest class."
    )


def _print_images(images: dict[str, Any]) -> None:
    print(f"\n{images['readable']:,} of {images['looked_at']:,} images can be used", end="")
    if not images["readable"]:
        say(".")
        return
    small, middle, large = ("x".join(map(str, images[key])) for key in ("smallest", "median", "largest"))
    if images["different"] == 1:
        say(f", all of {small} pixels.")
    else:
        side = images["shorter_side"]
        say(
            f", of {images['different']:,} sizes: {small} to {large} pixels, in the middle {middle};\n"
            f"98 % have a shorter side of {side['1']} to {side['99']} pixels."
        )
    say("Kinds: " + ", ".join(f"{k['images']:,} {k['format']} {k['mode']}" for k in images["kinds"]) + ".")


def print_prepared(document: dict[str, Any]) -> None:
    """Print what a complete data set holds, and where its manifest is."""
    say(f"{document['published'] or document['name']} is complete in {document['root'] or 'the package'}.")
    for name, split in document["splits"].items():
        counts = split["counts"]
        say(
            f"  {name:<10} {split['images']:>9,} images in {len(counts):,} classes, {max(counts):,} to {min(counts):,} "
            f"a class   {split['hash'][:12]}"
        )
    profile = document["profile"]
    groups = ", ".join(f"{profile[name]:,} {name}" for name in ("many", "medium", "few"))
    say(f"  classes by training images: {groups}")
    state = {"new": "written", "accepted": "written anew", "unchanged": f"unchanged since {document['written']}"}
    say(f"Manifest   {document['manifest']} ({state[document['state']]})")
