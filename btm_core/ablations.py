"""The paper's ablations as lists of variants of one experiment (section 4.3). Equal parts have equal addresses, so a
variant costs only what it changes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from btm_core.config import ExperimentConfig, with_overrides
from btm_core.errors import ConfigError

__all__ = ["ABLATIONS", "Variant", "subset_alert", "variants", "with_values"]


@dataclass(frozen=True)
class Variant:
    """One line of a table, or several: labels, what differs from the experiment, and which models to show.

    `models` maps the stage of a model (pretrain, baseline, merge, post_train, or all) to its label.
    """

    labels: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=lambda: {"final": ""})


def with_values(experiment: ExperimentConfig, values: dict[str, Any]) -> ExperimentConfig:
    """Return the experiment with dotted keys set, validated anew. Raises ConfigError."""
    return with_overrides(experiment, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def _merging(experiment: ExperimentConfig) -> list[Variant]:
    names = {
        "uniform": "average",
        "adaptive_h_mean": "adaptive ratio, H-mean",
        "adaptive_g_mean": "adaptive ratio, G-mean",
        "greedy_h_mean": "greedy soup, H-mean",
        "greedy_g_mean": "greedy soup, G-mean",
    }
    models = {"merge": "merge", "final": "post-train"}
    return [Variant({"merging": name}, {"merge.strategy": strategy}, models) for strategy, name in names.items()]


def _subsets(experiment: ExperimentConfig) -> list[Variant]:
    sizes = [(2, 10), (4, 10), (8, 10), (10, 10), (20, 10), (10, 5), (10, 20)]
    drawn: dict[str, Any] = {"sampling.lists": []}  # published ones are of one size
    return [
        Variant(
            {"subsets (N_D)": str(count), "shots (N_C)": str(shots)},
            {"sampling.num_subsets": count, "sampling.shots": shots, **drawn},
        )
        for count, shots in sizes
    ]


def _training(experiment: ExperimentConfig) -> list[Variant]:
    return [
        Variant({"when": when, "what": what}, {"finetune.start": start, "finetune.train": part})
        for start, when in (("stage1", "between stages"), ("post_trained", "after stage 2"))
        for part, what in (("backbone", "backbone"), ("head", "head"), ("all", "both"))
    ]


def _gml(experiment: ExperimentConfig) -> list[Variant]:
    plain = experiment.post_train.method
    if plain == "gml":
        raise ConfigError("the gml ablation compares another post_train.method with gml; start from such an experiment")
    on = {"evaluation.baseline": True}
    with_gml = {**on, "post_train.method": "gml", "post_train.reweight": "none"}  # GML has no class weights
    # A base of one stage (PaCo in Table 11) is the method by itself; post-training it is BTM's.
    one_stage = experiment.fc is not None
    name, itself = (experiment.pretrain.method.name, "pretrain") if one_stage else (plain, "baseline")
    return [
        Variant({"method": name}, on, {itself: ""}),
        Variant({"method": f"{name} + GML"}, with_gml, {"baseline": ""}),
        Variant({"method": f"{name} + BTM"}, on),
        Variant({"method": f"{name} + BTM + GML"}, with_gml),
    ]


def _models(experiment: ExperimentConfig) -> list[Variant]:
    return [Variant({}, {"evaluation.baseline": True}, {"all": ""})]


ABLATIONS: dict[str, tuple[str, Callable[[ExperimentConfig], list[Variant]]]] = {
    "merging": ("Table 6: strategies of merging", _merging),
    "subsets": ("Table 7: number and size of the balanced subsets", _subsets),
    "training": ("Table 8: when to train what", _training),
    "gml": ("Tables 9 to 11: with the geometric mean loss", _gml),
    "models": ("Tables 12 to 16: every model on the way", _models),
}
"""Title and variants of each, by the name that `btm ablate` takes."""


def variants(
    experiment: ExperimentConfig, name: str, seeds: Sequence[int]
) -> tuple[str, list[tuple[Variant, ExperimentConfig]]]:
    """Return an ablation's title, and each of its variants with the experiment that it is, once a seed.

    None goes on without an ingredient (`finetune.quorum`): rows of other soups would be compared as if they were equal.
    Raises ConfigError for a variant that cannot be, before hours of training, not between two rows.
    """
    title, of = ABLATIONS[name]
    values = [(variant, {"finetune.quorum": None, **variant.values}) for variant in of(experiment)]
    return title, [(v, with_values(experiment, {**changed, "seed": seed})) for v, changed in values for seed in seeds]


def subset_alert(rows: Sequence[tuple[int, int, float]], points: float = 0.01) -> list[str]:
    """Return a warning wherever the H-mean falls as the number of subsets grows, at equal shots (Table 7).

    Arguments:
    - rows: (num_subsets, shots, H-mean as a fraction).
    - points: falls of less are noise.
    """
    warnings = []
    for shots in sorted({shots for _, shots, _ in rows}):
        line = sorted((count, h) for count, other, h in rows if other == shots)
        for number, (count, h) in enumerate(line[1:], start=1):
            best_count, best = max(line[:number], key=lambda pair: pair[1])
            if h < best - points:
                warnings.append(
                    f"H-mean falls from {100 * best:.1f} at {best_count} subsets to {100 * h:.1f} at {count} "
                    f"({shots} shots): more subsets repeat the images of the rarest classes"
                )
    return warnings
