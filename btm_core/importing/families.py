"""How each family of published checkpoints is recognised and laid out. One entry a family.

A family yields its tensors by our names, and the names it leaves aside with the reason. What it does not know stays
over, and the importer refuses it. C classes, D features.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from btm_core.errors import CheckpointError

__all__ = ["FAMILIES", "Family", "Layout"]

State = dict[str, Tensor]


@dataclass
class Layout:
    """What a family made of a file: tensors by our names, where each came from, what was dropped and why."""

    tensors: State = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, ours: str, theirs: str, tensor: Tensor) -> None:
        """Put a tensor under one of our names."""
        self.tensors[ours], self.source[ours] = tensor, theirs

    def backbone(self, state: State, where: str = "") -> None:
        """Take a whole state dict as the backbone."""
        for name, tensor in state.items():
            self.take(f"backbone.{name}", f"{where}{name}", tensor)

    def head(self, state: State, name: str, where: str = "") -> None:
        """Take the linear layer `name`."""
        if f"{name}.weight" in state and f"{name}.bias" not in state:
            raise CheckpointError(
                f"{where}{name} has no bias: a normed (cosine) head, whose logits no linear head gives; import the "
                "backbone alone (--backbone-only) and train a head"
            )
        for part in ("weight", "bias"):
            if f"{name}.{part}" in state:
                self.take(f"head.{part}", f"{where}{name}.{part}", state[f"{name}.{part}"])

    def scale(self, scale: Tensor, name: str) -> None:
        """Multiply the logits' scale, (C,) or (1, C), into weight and bias."""
        factor = scale.reshape(-1)
        self.tensors["head.weight"] = self.tensors["head.weight"] * factor[:, None]
        self.tensors["head.bias"] = self.tensors["head.bias"] * factor
        self.notes.append(f"the learnt scaling {name} was multiplied into the head")


@dataclass(frozen=True)
class Family:
    """A name, a test of the file's top level, and the function that lays it out (or raises why it cannot be)."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    lay_out: Callable[[Mapping[str, Any]], Layout]


def plain(state: Mapping[str, Any]) -> State:
    """Return the tensors of a state dict, without DataParallel's `module.`."""
    return {re.sub(r"^module\.", "", name): t for name, t in state.items() if isinstance(t, Tensor)}


def _mislas(file: Mapping[str, Any]) -> Layout:
    """MiSLAS, BTM and H2T: the network in parts; Places keeps the last bottleneck apart, stage 2 a scale."""
    layout = Layout()
    layout.backbone(plain(file["state_dict_model"]), "state_dict_model/")
    if "state_dict_block" in file:
        blocks = [int(m[1]) for m in (re.match(r"backbone\.layer4\.(\d+)\.", name) for name in layout.tensors) if m]
        last = max(blocks) + 1
        for name, tensor in plain(file["state_dict_block"]).items():
            inner = re.sub(r"^.*?(conv\d|bn\d|downsample)", r"\1", name)
            layout.take(f"backbone.layer4.{last}.{inner}", f"state_dict_block/{name}", tensor)
        layout.notes.append(f"the separate block is layer4.{last}")
    layout.head(plain(file["state_dict_classifier"]), "fc", "state_dict_classifier/")
    for name, tensor in plain(file.get("state_dict_lws_model", {})).items():
        layout.scale(tensor, f"state_dict_lws_model/{name}")
    return layout


def _paco(file: Mapping[str, Any]) -> Layout:
    """PaCo and GPaCo: the query encoder is the network, `linear` on its pooled features the head."""
    layout = Layout()
    state = plain(file["state_dict"])
    why = {
        "encoder_k.*": "momentum encoder",
        "linear_k.*": "momentum encoder's head",
        "queue*": "queue of the contrastive loss",
        "encoder_q.fc.*": "projection of the contrastive loss",
    }
    for name, tensor in state.items():
        reason = next((reason for pattern, reason in why.items() if fnmatch.fnmatch(name, pattern)), None)
        if reason is not None:
            layout.dropped[name] = reason
        elif name.startswith("encoder_q."):
            layout.take(name.replace("encoder_q.", "backbone.", 1), name, tensor)
        elif not name.startswith("linear."):
            layout.unknown.append(name)
    layout.head(state, "linear")
    return layout


def _decoupling(file: Mapping[str, Any]) -> Layout:
    """cRT, LWS and BSCE: one state dict a network; LWS keeps a scale a class."""
    layout = Layout()
    best = file["state_dict_best"]
    layout.backbone(plain(best["feat_model"]), "feat_model/")
    head = plain(best["classifier"])
    layout.head(head, "fc", "classifier/")
    if "scales" in head:
        layout.scale(head["scales"], "classifier/scales")
    layout.unknown += [f"classifier/{name}" for name in head if not name.startswith("fc.") and name != "scales"]
    return layout


def _single(state: Mapping[str, Any]) -> Layout:
    """One state dict with a head called fc or linear: OTmix, PASCL, torchvision, timm."""
    layout = Layout()
    tensors = plain(state)
    head = "linear" if "linear.weight" in tensors else "fc"
    for name, tensor in tensors.items():
        if name.startswith("projection."):
            layout.dropped[name] = "projection of the contrastive loss"
        elif name.startswith("aux_linear."):
            layout.dropped[name] = "auxiliary head of the first stage"
        elif not name.startswith(f"{head}."):
            layout.take(f"backbone.{name}", name, tensor)
    layout.head(tensors, head)
    return layout


def _ours(state: Mapping[str, Any]) -> Layout:
    layout = Layout()
    for name, tensor in plain(state).items():
        layout.take(name, name, tensor)
    return layout


def _refused(why: str) -> Callable[[Mapping[str, Any]], Layout]:
    def lay_out(file: Mapping[str, Any]) -> Layout:
        raise CheckpointError(why)

    return lay_out


def _has(state: Any, pattern: str) -> bool:
    return isinstance(state, Mapping) and any(re.match(pattern, re.sub(r"^module\.", "", str(name))) for name in state)


FAMILIES = (
    Family("mislas", lambda f: "state_dict_model" in f and "state_dict_classifier" in f, _mislas),
    Family("decoupling", lambda f: "state_dict_best" in f, _decoupling),
    Family("paco", lambda f: _has(f.get("state_dict"), r"encoder_q\."), _paco),
    Family(
        "ride",
        lambda f: _has(f.get("state_dict"), r"backbone\.(linears|layer\ds)\."),
        _refused(
            "a RIDE checkpoint is several experts with normed heads, averaged: no one linear head gives its logits"
        ),
    ),
    Family(
        "bbn",
        lambda f: _has(f.get("state_dict"), r"(backbone\.)?(cb_block|rb_block)\."),
        _refused("a BBN checkpoint has two branches and a head on both: it is no single backbone with a linear head"),
    ),
    Family(
        "lift",
        lambda f: "tuner" in f,
        _refused("a LIFT checkpoint holds adapters without the weights they adapt, and a cosine head"),
    ),
    Family("otmix", lambda f: isinstance(f.get("state_dict"), Mapping), lambda f: _single(f["state_dict"])),
    Family("pascl", lambda f: isinstance(f.get("model"), Mapping), lambda f: _single(f["model"])),
    Family("btm", lambda f: "head.weight" in f, _ours),
    Family("torchvision", lambda f: _has(f, r"conv1\.weight|layer1\."), _single),
)
"""In the order they are tried. `mislas` stands for MiSLAS, BTM and H2T; `decoupling` for cRT, LWS and BSCE; `paco` for
PaCo and GPaCo; `torchvision` for every bare state dict, timm's and PASCL's too."""


def fold_counters(state: State) -> None:
    """Make the counters of BN batches what they are, whole numbers: averaging has turned some into fractions."""
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            state[name] = tensor.round().to(torch.int64).reshape(())
