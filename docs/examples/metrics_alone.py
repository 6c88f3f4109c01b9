"""The figures alone: of predictions as NumPy arrays, whatever made them."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from btm_core.data import long_tail_indices
from btm_core.metrics import confusions, recall_report, shot_groups
from btm_core.sampling import balanced_subset
from btm_core.statistics import class_differences, clearly_changed, paired_differences

x, y = load_digits(return_X_y=True)
test = balanced_subset(y, shots=60, seed=0, index=0)
rest = np.setdiff1d(np.arange(len(y)), test)
train = rest[long_tail_indices(y[rest], imbalance_factor=50)]
counts = np.bincount(y[train])  # training images a class: they say which classes are many, medium and few

# Two models of any kind; all that counts is what they predict on the same test images.
plain = LogisticRegression(max_iter=2000).fit(x[train], y[train]).predict(x[test])
balanced = LogisticRegression(max_iter=2000, class_weight="balanced").fit(x[train], y[train]).predict(x[test])

for name, predictions in (("plain", plain), ("balanced", balanced)):
    r = recall_report(y[test], predictions, counts)
    print(f"{name:<9} accuracy {r.accuracy:.1%}, H-mean {r.h_mean:.1%}, lowest recall {r.lowest_recall:.1%}")
    groups = {group: r.recall[members].mean() for group, members in shot_groups(counts).items() if members.any()}
    print("          " + ", ".join(f"{group} {recall:.1%}" for group, recall in groups.items()))

# How much of the difference may the choice of test images explain? 95 % intervals of a paired bootstrap.
for figure, d in paired_differences(y[test], plain, balanced).items():
    print(f"{figure:<14} {100 * d.mean:+5.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f})")
changes = class_differences(y[test], plain, balanced)
clear = clearly_changed(y[test], plain, balanced, changes)
worse = [c for c, d in enumerate(changes) if clear[c] and d.mean < 0]
print(f"clearly worse: {worse or 'no class'}")
lowest = int(recall_report(y[test], balanced, counts).recall.argmin())
print(f"the lowest class, {lowest}, is taken for (class, images): {confusions(y[test], balanced, lowest)}")
