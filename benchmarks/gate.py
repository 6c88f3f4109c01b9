"""How often the gate promotes what is no better, and what is: `python -m benchmarks.gate [TRIALS]`.

Two models are drawn with known recalls of each class; on half of the images both are right or wrong together, as two
trainings of one recipe are. The recalls are those of the long-tailed CIFAR-100 model of benchmarks/results, spread over
its 100 classes. Writes benchmarks/results/gate.json. Seeds: 0 to TRIALS - 1.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from btm_core.config import PromotionRules
from btm_core.evidence import Evidence
from btm_core.promotion import judge

RESULTS = Path(__file__).parent / "results" / "gate.json"
CLASSES = 100
TOGETHER = 0.5
RULES = {
    "point estimate alone": None,
    "gain by its interval, no other rule": PromotionRules(
        accuracy_loss=None, class_loss=None, worst_loss=None, new_zero_recall_classes=None
    ),
    "defaults": PromotionRules(),
    "defaults, losses by interval": PromotionRules(losses="interval"),
}


def pair(before: np.ndarray, after: np.ndarray, images: int, seed: int) -> tuple[Evidence, Evidence]:
    """Draw two models whose true recalls are `before` and `after`, on `images` a class."""
    random = np.random.default_rng(seed)
    targets = np.repeat(np.arange(CLASSES), images)
    draw = random.random(len(targets))
    other = np.where(random.random(len(targets)) < TOGETHER, draw, random.random(len(targets)))
    counts = np.linspace(500, 5, CLASSES).astype(int)
    names = tuple(map(str, range(CLASSES)))

    def model(recall: np.ndarray, luck: np.ndarray) -> Evidence:
        predictions = np.where(luck < recall[targets], targets, (targets + 1) % CLASSES)
        return Evidence("test", "simulated", names, counts, counts, targets, predictions)

    return model(before, draw), model(after, other)


def main(trials: int) -> None:
    before = np.linspace(0.75, 0.10, CLASSES)
    worlds = {
        "no better": before,
        "tail 5 points better": before + 0.05 * (np.arange(CLASSES) >= 65),
        "tail 10 points better": before + 0.10 * (np.arange(CLASSES) >= 65),
        "tail 10 better, head 5 worse": before + 0.10 * (np.arange(CLASSES) >= 65) - 0.05 * (np.arange(CLASSES) < 35),
        "tail 10 better, one class lost": np.where(
            np.arange(CLASSES) == 0, 0.35, before + 0.10 * (np.arange(CLASSES) >= 65)
        ),
    }
    rows = []
    for images in (20, 100):
        for world, after in worlds.items():
            for name, rules in RULES.items():
                promoted, why = 0, Counter[str]()
                for seed in range(trials):
                    champion, candidate = pair(before, after, images, seed)
                    if rules is None:
                        promoted += candidate.report.h_mean > champion.report.h_mean
                        continue
                    verdict = judge(candidate, champion, rules.model_copy(update={"resamplings": 500}))
                    promoted += verdict.promotes
                    why.update(check.rule for check in verdict.checks if not check.passed)
                row = {
                    "test_images_a_class": images,
                    "truth": world,
                    "rules": name,
                    "trials": trials,
                    "promoted": int(promoted),
                    "refused_by": dict(why.most_common()),
                }
                rows.append(row)
                print(f"{images:>4} images  {world:<32} {name:<38} {promoted:>4}/{trials}  {dict(why)}", flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
