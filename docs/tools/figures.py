"""Draw the figures of docs/concepts.md, light and dark, from what was measured (benchmarks/results/).

`python docs/tools/figures.py` draws them. `... --record RUN.json INTERPOLATION.json` first takes the classes of a run
and the curves of an interpolation into benchmarks/results/digits-lt-seed0.json, from what these print:

    btm run digits-lt --json > RUN.json
    btm ablate interpolation digits-lt --json > INTERPOLATION.json
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[2]
RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
SEED0 = RESULTS / "digits-lt-seed0.json"
INKS = {"light": ("#24292f", "#ffffff", "#c8ccd0"), "dark": ("#dfe1e6", "#1e2129", "#4a4f5a")}
"""Text, ground (that of the page) and lines of the two schemes."""
WITHOUT, WITH = {"light": "#D55E00", "dark": "#E69F00"}, {"light": "#0072B2", "dark": "#56B4E9"}
"""Without and with BTM: of Okabe and Ito's colour-blind set; the shapes differ, too."""


def main(arguments: list[str]) -> None:
    """Draw every figure in both schemes."""
    if arguments[:1] == ["--record"]:
        record(*map(Path, arguments[1:]))
    drawings = {
        "algorithm": algorithm,
        "digits-classes": classes,
        "digits-seeds": seeds,
        "interpolation": curves,
        "cifar": cifar,
    }
    for name, draw in drawings.items():
        for scheme in INKS:
            save(draw, name, scheme)


def record(run: Path, interpolation: Path) -> None:
    """Take what the figures need from the answers of two commands."""
    url = json.loads(run.read_text())["report"]
    report = json.loads(Path(unquote(url.removeprefix("file://"))).with_suffix(".json").read_text())
    names = ("stage 1", "stage 1 + post-train", "soup", "final")
    found = {
        "commands": ["btm run digits-lt", "btm ablate interpolation digits-lt"],
        "versions": report["versions"],
        "train_images": report["classes"]["train_images"],
        "recall": {name: [round(r, 4) for r in report["classes"]["recall"][name]] for name in names},
        "interpolation": [
            {
                **row["labels"],
                **{key: round(row["runs"][0][key], 4) for key in ("h_mean", "g_mean", "lowest_recall", "accuracy")},
            }
            for row in json.loads(interpolation.read_text())["rows"]
        ],
    }
    SEED0.write_text(json.dumps(found, indent=1) + "\n")


def save(draw: Callable[[str], Figure], name: str, scheme: str) -> None:
    """Write a figure as SVG whose text is text; the same figure is the same file."""
    ink, ground, line = INKS[scheme]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": ["system-ui", "sans-serif"],
        "font.size": 10.5,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), line),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    # Widths of text are measured in a font that is here; readers have another one of about its width.
    import logging

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(style):
        figure = draw(scheme)
        figure.savefig(FIGURES / f"{name}-{scheme}.svg", metadata={"Date": None, "Creator": None})


def algorithm(scheme: str) -> Figure:
    """Algorithm 1 as boxes."""
    ink, ground, line = INKS[scheme]
    figure = Figure(figsize=(8.4, 2.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 84), ylim=(0, 29))
    axes.axis("off")
    boxes = [
        (1, 10, 14, 9, "stage 1", "all images,\nany method", line),
        *((24, y, 17, 5.5, f"subset {n}", "", WITH[scheme]) for n, y in (("0", 21.5), ("1", 13.5), (r"$N_D-1$", 2))),
        (50, 10, 13, 9, "soup", "mean of\nthe weights", WITH[scheme]),
        (70, 10, 13, 9, "final", "head re-trained\nfor all classes", line),
    ]
    for x, y, w, h, title, text, edge in boxes:
        axes.add_patch(
            FancyBboxPatch(
                (x, y), w, h, "round,pad=0.2,rounding_size=1", facecolor=ground, edgecolor=edge, linewidth=1.8
            )
        )
        middle = y + h * (0.72 if text else 0.5)
        axes.text(x + w / 2, middle, title, ha="center", va="center", fontweight="bold")
        axes.text(x + w / 2, y + h * 0.3, text, ha="center", va="center", fontsize=9)
    arrow = {"arrowstyle": "-|>", "color": ink, "shrinkA": 0, "shrinkB": 0}
    for y in (24.2, 16.2, 4.8):
        axes.annotate("", (23.6, y), (15.4, 14.5), arrowprops=arrow)
        axes.annotate("", (49.6, 14.5), (41.4, y), arrowprops=arrow)
    axes.annotate("", (69.6, 14.5), (63.4, 14.5), arrowprops=arrow)
    axes.text(32.5, 10.4, "⋮", ha="center", va="center", fontsize=16)
    axes.text(32.5, 28.3, r"$N_C$ images of every class", ha="center", va="center", fontsize=9)
    for left, bottom, text in ((20.5, 26.4, "fine-tune"), (44.5, 26.4, "average"), (66.5, 16.6, "post-train")):
        axes.text(left, bottom, text, ha="center", va="center", fontsize=9, style="italic")
    return figure


def classes(scheme: str) -> Figure:
    """Recall of each class of digits-lt, seed 0: stage 1, post-training without BTM, BTM."""
    found = json.loads(SEED0.read_text())
    counts = found["train_images"]
    places = np.arange(len(counts))
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(places, found["recall"]["stage 1"], 0.8, color=INKS[scheme][2], label="stage 1")
    axes.plot(
        places - 0.12, found["recall"]["stage 1 + post-train"], "D", color=WITHOUT[scheme], label="stage 1 + post-train"
    )
    axes.plot(places + 0.12, found["recall"]["final"], "o", color=WITH[scheme], markersize=7, label="BTM + post-train")
    axes.set_xticks(places, [f"{digit}\n{count}" for digit, count in enumerate(counts)])
    axes.set(xlabel="class, and its training images", ylabel="recall", ylim=(0, 1.05))
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def seeds(scheme: str) -> Figure:
    """The four figures of digits-lt on five seeds, without and with BTM."""
    found = json.loads((RESULTS / "digits-lt-report.json").read_text())["results"]["preset"]
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    keys = {"h_mean": "H-mean", "g_mean": "G-mean", "lowest_recall": "lowest recall", "accuracy": "accuracy"}
    rows = (("stage 1 + post-train", WITHOUT[scheme], "D", -0.14), ("final", WITH[scheme], "o", 0.14))
    for name, color, shape, shift in rows:
        for place, key in enumerate(keys):
            values = found[name][key]["values"]
            label = {"final": "BTM + post-train"}.get(name, name) if place == 0 else None
            axes.plot([place + shift] * len(values), values, shape, color=color, alpha=0.65, markersize=6, label=label)
            axes.hlines(np.mean(values), place + shift - 0.1, place + shift + 0.1, color=color, linewidth=2.5)
    _percent(axes, list(keys.values()))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def curves(scheme: str) -> Figure:
    """H-mean and accuracy along two paths between networks (the paper's Figures 1 and 2)."""
    rows = json.loads(SEED0.read_text())["interpolation"]
    figure = Figure(figsize=(8.0, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    paths = {"stage 1 to A": (left, "stage 1", "A"), "A to B": (right, "A", "B")}
    for path, (axes, start, end) in paths.items():
        points = [row for row in rows if row["Path"] == path]
        at = [float(row["lambda"]) for row in points]
        axes.plot(at, [100 * row["h_mean"] for row in points], "o-", color=WITH[scheme], label="H-mean")
        axes.plot(
            at, [100 * row["accuracy"] for row in points], "s--", color=WITHOUT[scheme], markersize=5, label="accuracy"
        )
        axes.set(xlabel="λ", ylim=(-2, 100))
        axes.set_xticks([0, 0.5, 1], [f"0\n{start}", "0.5", f"1\n{end}"])
    [union] = [row for row in rows if row["Path"] == "A union B"]
    right.axhline(
        100 * union["h_mean"], color=INKS[scheme][0], linestyle=":", linewidth=1.5, label="H-mean, trained on A and B"
    )
    left.set_ylabel("percent")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def cifar(scheme: str) -> Figure:
    """H-mean and lowest recall of CIFAR100-LT: here and published, without and with BTM."""
    found = json.loads((RESULTS / "cifar100-lt.json").read_text())["rows"]
    methods = {"mislas": "MiSLAS", "gml": "MiSLAS + GML", "h2t": "H2T"}
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, title, number in zip(
        panels, ("h_mean", "lowest_recall"), ("H-mean", "lowest recall"), (0, 2), strict=True
    ):
        for place, method in enumerate(methods):
            for shift, suffix, color, name in (
                (-0.2, "", WITHOUT[scheme], "without BTM"),
                (0.2, " + BTM", WITH[scheme], "with BTM"),
            ):
                row: dict[str, Any] = found[method + suffix]
                figures = row["summary"][key]
                bar = {"color": color, "ecolor": INKS[scheme][0], "capsize": 3}
                axes.bar(
                    place + shift, figures["mean"], 0.36, yerr=figures["std"], label=name if place == 0 else None, **bar
                )
                dot = {"color": INKS[scheme][0], "markersize": 6, "fillstyle": "none", "linestyle": "none"}
                axes.plot(
                    place + shift,
                    row["published"][number],
                    "D",
                    label="published" if place + shift > 2 else None,
                    **dot,
                )
        axes.set_xticks(range(len(methods)), list(methods.values()))
        axes.set(title=title, ylim=(0, None))
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("percent")
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: ("without BTM", "with BTM", "published").index(labels[i]))
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper center", ncols=3)
    return figure


def _percent(axes: Axes, names: list[str]) -> None:
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="percent", ylim=(0, 100))
    axes.grid(axis="x", visible=False)


if __name__ == "__main__":
    main(sys.argv[1:])
