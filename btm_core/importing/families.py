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

__all__ = ["FAMILIES", "Family", "Layout", "choose_averaged", "fold_counters"]

State = dict[str, Tensor]


@dataclass
class Layout:
    """What a family made of a file: tensors by our names, where each came from, what was dropped and why."""

    tensors: State = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unknown_of_head: list[str] = field(default_factory=list)
    """What stands below the head's name and is no weight or bias of a linear layer."""
    no_linear_head: str | None = None
    """Why the file's head is none of ours."""
    notes: list[str] = field(default_factory=list)

    def read(self, state: Mapping[str, Any], where: str = "", known: tuple[str, ...] = ()) -> State:
        """Return the tensors of a state dict by their bare names.

        What else in it holds tensors, and is not in `known`, is named as dropped.
        """
        found: State = {}
        for key, value in state.items():
            name = bare(key)
            if isinstance(value, Tensor):
                if name in found:
                    raise CheckpointError(f"{where}{name} is there twice, under several prefixes")
                found[name] = value
            elif key not in known:
                self.leave(f"{where}{key}", value)
        return found

    def leave(self, name: str, value: Any) -> None:
        """Name the tensors in a part of the file that is not read as dropped."""
        why = "averaged (EMA) weights, read with --ema alone" if _is_averaged(name) else "no part of the network"
        self.dropped |= dict.fromkeys(_tensors_in(value, name), f"{name}: {why}")

    def take(self, ours: str, theirs: str, tensor: Tensor) -> None:
        """Put a tensor under one of our names."""
        self.tensors[ours], self.source[ours] = tensor, theirs

    def backbone(self, state: State, where: str = "") -> None:
        """Take a whole state dict as the backbone."""
        for name, tensor in state.items():
            self.take(f"backbone.{name}", f"{where}{name}", tensor)

    def head(self, state: State, name: str, where: str = "") -> None:
        """Take the linear layer `name`; what else is below its name stays over."""
        linear = f"{name}.weight" in state and f"{name}.bias" in state
        if f"{name}.weight" in state and not linear:
            self.no_linear_head = (
                f"{where}{name} has no bias: a normed (cosine) head, whose logits no linear head gives; import the "
                "backbone alone (--backbone-only) and train a head"
            )
        for theirs, tensor in state.items():
            prefix, _, part = theirs.rpartition(".")
            if linear and prefix == name and part in ("weight", "bias"):
                self.take(f"head.{part}", f"{where}{theirs}", tensor)
            elif theirs.startswith(f"{name}."):
                self.unknown_of_head.append(f"{where}{theirs}")

    def scale(self, scale: Tensor, name: str) -> None:
        """Multiply the logits' scale, (C,) or (1, C), into weight and bias."""
        if "head.weight" not in self.tensors:
            self.unknown_of_head.append(name)
            return
        classes = len(self.tensors["head.weight"])
        if tuple(scale.shape) not in ((classes,), (1, classes)):
            raise CheckpointError(
                f"{name} has shape {tuple(scale.shape)}; the learnt scaling of {classes} classes is (1, {classes})"
            )
        if not scale.is_floating_point() or not torch.isfinite(scale).all():
            raise CheckpointError(f"{name} holds NaN, infinite or whole ({scale.dtype}) values: no learnt scaling")
        factor = scale.reshape(-1)
        self.tensors["head.weight"] = self.tensors["head.weight"] * factor[:, None]
        self.tensors["head.bias"] = self.tensors["head.bias"] * factor
        self.notes.append(f"the learnt scaling {name} was multiplied into the head")


@dataclass(frozen=True)
class Family:
    """A name, a test of the file's top level, and the function that lays it out (or raises why it cannot be).

    `reads` are the top-level keys that the function reads, None where the whole file is one state dict.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    lay_out: Callable[[Mapping[str, Any]], Layout]
    reads: tuple[str, ...] | None = None


def bare(name: object) -> str:
    """Return a name without what DataParallel and torch.compile put before it, however often they did."""
    return re.sub(r"^(module\.)+", "", re.sub(r"(^|(?<=\.))_orig_mod\.", "", str(name)))


def _tensors_in(value: Any, name: str) -> list[str]:
    """Return the names of the tensors in a value, at any depth; one without dimensions is a figure, and left out."""
    if isinstance(value, Tensor):
        return [name] if value.dim() else []
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [found for key, part in parts for found in _tensors_in(part, f"{name}/{key}")]


def _is_averaged(key: str) -> bool:
    return "ema" in re.split(r"[_./-]", key.lower())


def choose_averaged(file: Mapping[str, Any], family: Family) -> dict[Any, Any]:
    """Return the file with its averaged (EMA) weights in place of the others."""
    keys = [key for key, value in file.items() if _is_averaged(str(key)) and isinstance(value, Mapping)]
    if len(keys) != 1 or family.reads is None or len(family.reads) != 1:
        found = ", ".join(map(str, keys)) or "none"
        raise CheckpointError(f"--ema needs one state dict of averaged weights beside the others; found: {found}")
    plain = family.reads[0]
    others = {key: value for key, value in file.items() if key not in (keys[0], plain)}
    return {**others, plain: file[keys[0]], f"{plain}, not averaged": file[plain]}


def _mislas(file: Mapping[str, Any]) -> Layout:
    """MiSLAS, BTM and H2T: the network in parts; Places keeps the last bottleneck apart, stage 2 a scale."""
    layout = Layout()
    layout.backbone(layout.read(file["state_dict_model"], "state_dict_model/"), "state_dict_model/")
    if "state_dict_block" in file:
        blocks = [int(m[1]) for m in (re.match(r"backbone\.layer4\.(\d+)\.", name) for name in layout.tensors) if m]
        last = max(blocks) + 1
        for name, tensor in layout.read(file["state_dict_block"], "state_dict_block/").items():
            inner = re.sub(r"^.*?(conv\d|bn\d|downsample)", r"\1", name)
            layout.take(f"backbone.layer4.{last}.{inner}", f"state_dict_block/{name}", tensor)
        layout.notes.append(f"the separate block is layer4.{last}")
    head = layout.read(file["state_dict_classifier"], "state_dict_classifier/")
    layout.head(head, "fc", "state_dict_classifier/")
    layout.unknown_of_head += [f"state_dict_classifier/{name}" for name in head if not name.startswith("fc.")]
    for name, tensor in layout.read(file.get("state_dict_lws_model", {}), "state_dict_lws_model/").items():
        if name == "learned_norm":
            layout.scale(tensor, f"state_dict_lws_model/{name}")
        else:
            layout.unknown_of_head.append(f"state_dict_lws_model/{name}")
    return layout


def _paco(file: Mapping[str, Any]) -> Layout:
    """PaCo and GPaCo: the query encoder is the network, `linear` on its pooled features the head."""
    layout = Layout()
    state = layout.read(file["state_dict"], "state_dict/")
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
    layout.read(best, "state_dict_best/", known=("feat_model", "classifier"))
    layout.backbone(layout.read(best["feat_model"], "feat_model/"), "feat_model/")
    head = layout.read(best["classifier"], "classifier/")
    layout.head(head, "fc", "classifier/")
    if "scales" in head:
        layout.scale(head["scales"], "classifier/scales")
    others = [name for name in head if not name.startswith("fc.") and name != "scales"]
    layout.unknown_of_head += [f"classifier/{name}" for name in others]
    return layout


def _single(state: Mapping[str, Any]) -> Layout:
    """One state dict with a head called fc or linear: OTmix, PASCL, torchvision, timm."""
    layout = Layout()
    tensors = layout.read(state)
    head = "linear" if "linear.weight" in tensors else "fc"
    for name, tensor in tensors.items():
        if name.startswith("projection."):
            layout.dropped[name] = "projection of the contrastive loss"
        elif name.startswith("aux_linear."):
            layout.dropped[name] = "auxiliary head of the first stage"
        elif name == "n_averaged":
            layout.dropped[name] = "how many weights were averaged"
        elif not name.startswith(f"{head}."):
            layout.take(f"backbone.{name.replace('.shortcut.', '.downsample.')}", name, tensor)  # PASCL on CIFAR
    layout.head(tensors, head)
    return layout


def _ours(state: Mapping[str, Any]) -> Layout:
    layout = Layout()
    for name, tensor in layout.read(state).items():
        layout.take(name, name, tensor)
    return layout


def _refused(why: str) -> Callable[[Mapping[str, Any]], Layout]:
    def lay_out(file: Mapping[str, Any]) -> Layout:
        raise CheckpointError(why)

    return lay_out


def _has(state: Any, pattern: str) -> bool:
    return isinstance(state, Mapping) and any(re.match(pattern, bare(name)) for name in state)


FAMILIES = (
    Family(
        "mislas",
        lambda f: "state_dict_model" in f and "state_dict_classifier" in f,
        _mislas,
        ("state_dict_model", "state_dict_block", "state_dict_classifier", "state_dict_lws_model"),
    ),
    Family("decoupling", lambda f: "state_dict_best" in f, _decoupling, ("state_dict_best",)),
    Family("paco", lambda f: _has(f.get("state_dict"), r"encoder_q\."), _paco, ("state_dict",)),
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
    Family(
        "otmix", lambda f: isinstance(f.get("state_dict"), Mapping), lambda f: _single(f["state_dict"]), ("state_dict",)
    ),
    Family("pascl", lambda f: isinstance(f.get("model"), Mapping), lambda f: _single(f["model"]), ("model",)),
    Family("btm", lambda f: _has(f, r"head\.weight"), _ours),
    Family("torchvision", lambda f: _has(f, r"conv1\.weight|layer1\."), _single),
)
"""In the order they are tried. `mislas` stands for MiSLAS, BTM and H2T; `decoupling` for cRT, LWS and BSCE; `paco` for
PaCo and GPaCo; `torchvision` for every bare state dict, timm's and PASCL's too; `otmix` and `pascl` for every file with
its state dict under `state_dict` or `model`, as timm's and torchvision's training scripts write them."""


def fold_counters(state: State) -> None:
    """Make the counters of BN batches what they are, whole numbers: averaging has turned some into fractions."""
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked") and tensor.numel() == 1:
            state[name] = tensor.round().to(torch.int64).reshape(())
