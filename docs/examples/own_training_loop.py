"""BTM around a training loop and a network of your own: the loop is called as before, only on other images."""

import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from btm_core.data import long_tail_indices
from btm_core.losses import LabelAwareSmoothing
from btm_core.merging import average
from btm_core.metrics import recall_report
from btm_core.sampling import balanced_subset, class_aware_order

SUBSETS, SHOTS, SEED = 10, 10, 0  # N_D and N_C of the paper
torch.set_num_threads(1)  # sums, and so figures, depend on how many


class Network(nn.Module):
    """Your network. All that BTM asks is to know which part of it is the head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.backbone(x))


def train(model, order, part, loss_of, epochs, lr):
    """Your training loop: `order(epoch)` says which images, `part` of the network trains."""
    optimizer = torch.optim.SGD(part.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for epoch in range(epochs):
        for batch in torch.as_tensor(order(epoch)).split(32):
            shifted = torch.roll(images[batch], torch.randint(-1, 2, (2,)).tolist(), (2, 3))
            optimizer.zero_grad()
            loss_of(model(shifted), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def report(name, model):
    with torch.no_grad():
        predicted = model.eval()(test_images).argmax(1)
    r = recall_report(test_labels, predicted, counts)
    print(f"{name:<22} H-mean {r.h_mean:5.1%}  lowest {r.lowest_recall:5.1%}  accuracy {r.accuracy:5.1%}")


# Data: ten classes of real digits, 60 test images each; of the rest a long tail is cut.
x, y = load_digits(return_X_y=True)
x = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
test = balanced_subset(y, 60, SEED, index=0)
rest = np.setdiff1d(np.arange(len(y)), test)
rest = rest[long_tail_indices(y[rest], imbalance_factor=50)]
images, labels, counts = x[rest], torch.tensor(y[rest]), np.bincount(y[rest])
test_images, test_labels = x[test], y[test]
torch.manual_seed(SEED)

# Stage 1: whatever you do today.
stage1 = Network()
train(stage1, lambda epoch: torch.randperm(len(labels)), stage1, nn.CrossEntropyLoss(), epochs=40, lr=0.1)
report("stage 1", stage1)


# BTM: the whole network, fine-tuned on each of ten small balanced subsets; then one network again.
def finetune(index):
    subset, model = balanced_subset(labels, SHOTS, SEED, index), copy.deepcopy(stage1)
    train(model, lambda epoch: subset[torch.randperm(len(subset))], model, nn.CrossEntropyLoss(), epochs=60, lr=0.1)
    return model.state_dict()


soup = copy.deepcopy(stage1)
soup.load_state_dict(average([finetune(index) for index in range(SUBSETS)]))
report("soup", soup)


# Post-training: only the head, with classes drawn alike, and a loss of your choice; this one is MiSLAS's. In training
# mode the statistics of batch normalisation follow the balanced batches.
def post_train(model):
    loss = LabelAwareSmoothing(counts, head=0.4, tail=0.1)
    train(model, lambda epoch: class_aware_order(labels, len(labels), 4, epoch), model.head, loss, epochs=10, lr=0.05)
    return model


report("soup + post-train", post_train(soup))
report("stage 1 + post-train", post_train(stage1))  # the row to beat: without BTM
