"""Merge checkpoints that exist, wherever they come from: all alike, by weights, or a greedy soup."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from btm_core.data import long_tail_indices
from btm_core.merging import average, merge
from btm_core.metrics import recall_report
from btm_core.sampling import balanced_subset
from btm_core.soups import criterion, greedy_soup

x, y = load_digits(return_X_y=True)
x = torch.tensor(x, dtype=torch.float32) / 16
test = balanced_subset(y, shots=60, seed=0, index=0)
rest = np.setdiff1d(np.arange(len(y)), test)
validation = rest[balanced_subset(y[rest], shots=20, seed=1, index=0)]  # to choose on: never the test split
rest = np.setdiff1d(rest, validation)
train = rest[long_tail_indices(y[rest], imbalance_factor=50)]
folder = Path(tempfile.mkdtemp())


def fit(model, lr, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), torch.tensor(y[batch])).backward()
        optimizer.step()
    return model


# Here checkpoints are made: a network trained on the long tail, fine-tuned three times. Yours are files already.
torch.manual_seed(0)
start = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
fit(start, 0.05, [train] * 100)
for number, lr in enumerate((0.2, 0.2, 5.0)):  # the last one is too fast, and spoils its network
    subset = train[balanced_subset(y[train], shots=10, seed=0, index=number)]
    save_file(fit(copy.deepcopy(start), lr, [subset] * 100).state_dict(), folder / f"{number}.safetensors")
files = sorted(folder.glob("?.safetensors"))


def predicted(state, images):
    model = copy.deepcopy(start)
    model.load_state_dict(state)
    with torch.no_grad():
        return model(x[images]).argmax(1).numpy()


def report(name, state):
    r = recall_report(y[test], predicted(state, test), np.bincount(y[train]))
    print(f"{name:<22} H-mean {r.h_mean:5.1%}  lowest recall {r.lowest_recall:5.1%}")


report("before fine-tuning", start.state_dict())
for file in files:
    report(file.name, load_file(file))

# From files to a file, in parts: memory stays small however large and many they are. Paths may be s3:// URLs.
merge(files, folder / "soup.safetensors")
merge(files, folder / "weighted.safetensors", weights=[1, 1, 0])
report("soup", load_file(folder / "soup.safetensors"))
report("weighted 1:1:0", load_file(folder / "weighted.safetensors"))

# A greedy soup takes a checkpoint only if the soup is not worse with it, judged on the validation split.
states = [load_file(file) for file in files]


def score(some):
    return criterion(y[validation], predicted(average([states[i] for i in some]), validation), "h_mean")


members = greedy_soup([score([i]) for i in range(len(states))], score)
report(f"greedy soup of {sorted(members)}", average([states[i] for i in members]))
