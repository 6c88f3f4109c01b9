"""Miniature checkpoints in every published format, built from the published key tables, and what is made of them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Btm, small_experiment, write_lists
from torch import Tensor

from btm_core.checkpoints import load_backbone, load_into, save_tensors
from btm_core.errors import CheckpointError
from btm_core.importing import import_checkpoint
from btm_core.importing.probe import sorted_by_count
from btm_core.models import Classifier, build_model

C = 7
State = dict[str, Tensor]


def parts(model: Classifier) -> tuple[State, State]:
    """Return backbone and head by the names that published code gives them."""
    state = model.state_dict()
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return backbone, {f"fc.{k.removeprefix('head.')}": v for k, v in state.items() if k.startswith("head.")}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def linear(head: State, name: str = "linear") -> State:
    return {key.replace("fc.", f"{name}."): tensor for key, tensor in head.items()}


def mislas(model: Classifier) -> dict[str, Any]:
    backbone, head = parts(model)
    named = {"state_dict_model": prefixed(backbone, "module."), "state_dict_classifier": prefixed(head, "module.")}
    return {"epoch": 3, **named, "best_acc1": np.float64(39.5), "its_ece": 0.1}


def mislas_places(model: Classifier) -> dict[str, Any]:
    file = mislas(model)
    inner = {k: v for k, v in file["state_dict_model"].items() if k.startswith("module.layer4.2.")}
    file["state_dict_model"] = {k: v for k, v in file["state_dict_model"].items() if k not in inner}
    file["state_dict_block"] = {k.replace("module.layer4.2.", "module.block."): v for k, v in inner.items()}
    return file


def paco(model: Classifier, momentum: bool = True, layers: tuple[int, ...] = (0, 1, 3)) -> dict[str, Any]:
    backbone, head = parts(model)
    state = {**prefixed(backbone, "encoder_q."), **linear(head), "queue": torch.zeros(8, 4), "queue_l": torch.zeros(8)}
    state |= {f"encoder_q.fc.{i}.weight": torch.zeros(4, 4) for i in layers} | {"queue_ptr": torch.zeros(1)}
    if momentum:
        state |= {**prefixed(backbone, "encoder_k."), **linear(head, "linear_k")}
    return {"epoch": 1, "arch": "x", "state_dict": prefixed(state, "module."), "optimizer": {"state": {}}}


def otmix(model: Classifier) -> dict[str, Any]:
    backbone, head = parts(model)
    return {
        "epoch": 1,
        "state_dict": prefixed({**backbone, **linear(head)}, "module."),
        "best_acc1": torch.tensor(46.4),
    }


def pascl(model: Classifier) -> dict[str, Any]:
    return {"model": bare_pascl(model), "optimizer": {}, "scheduler": {}, "epoch": 1, "training_losses": [0.1]}


def bare_pascl(model: Classifier) -> dict[str, Any]:
    backbone, head = parts(model)
    others = {"projection.0.weight": torch.zeros(4, 4), "projection.2.weight": torch.zeros(4, 4)}
    return prefixed({**backbone, **head, **others}, "module.")


def decoupling(model: Classifier) -> dict[str, Any]:
    backbone, head = parts(model)
    best = {"feat_model": prefixed(backbone, "module."), "classifier": prefixed(head, "module.")}
    return {"state_dict_best": best, "epoch": 1, "best_epoch": 1, "best_acc": 0.5, "centroids": None}


def torchvision(model: Classifier) -> dict[str, Any]:
    return dict(parts(model)[0] | parts(model)[1])


FORMATS = {
    "mislas": (mislas, "resnet32"),
    "mislas, places": (mislas_places, "resnet50"),
    "paco": (paco, "resnet32"),
    "gpaco": (lambda model: paco(model, False, (0, 2, 4)), "resnext50_32x4d"),
    "otmix": (otmix, "resnet20"),
    "pascl": (pascl, "resnet18"),
    "pascl, bare": (bare_pascl, "resnet18"),
    "decoupling": (decoupling, "resnet34"),
    "torchvision": (torchvision, "resnet50"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_format_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    make, backbone = FORMATS[name]
    original = build_model(backbone, C, seed=3)
    torch.save(make(original), tmp_path / "theirs.pth")
    imported = import_checkpoint(tmp_path / "theirs.pth")
    assert (imported.backbone, imported.num_classes) == (backbone, C)
    assert imported.family == name.split(",")[0].replace("gpaco", "paco") or name == "pascl, bare"
    save_tensors(imported.tensors, tmp_path / "ours.safetensors")
    ours = build_model(backbone, C, seed=9)
    load_into(ours, tmp_path / "ours.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), original.eval()(x), rtol=1e-6, atol=1e-6)
    assert sum(imported.groups().values()) == len(imported.mapped)


@pytest.mark.parametrize("system", ["mislas", "lws"])
def test_a_learnt_scaling_is_folded(system: str, tmp_path: Path) -> None:
    original = build_model("resnet20", C, seed=3)
    scale = torch.linspace(0.5, 2, C)
    if system == "mislas":
        file = mislas(original) | {"state_dict_lws_model": {"module.learned_norm": scale[None]}}
    else:
        file = decoupling(original)
        file["state_dict_best"]["classifier"]["module.scales"] = scale
    torch.save(file, tmp_path / "a.pth")
    imported = import_checkpoint(tmp_path / "a.pth")
    assert "was multiplied into the head" in imported.notes[0]
    save_tensors(imported.tensors, tmp_path / "a.safetensors")
    ours = build_model("resnet20", C)
    load_into(ours, tmp_path / "a.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), scale * original.eval()(x), rtol=1e-5, atol=1e-5)


def change_missing(file: dict[str, Any]) -> None:
    del file["state_dict_model"]["module.layer2.1.bn1.running_mean"]


def change_unknown(file: dict[str, Any]) -> None:
    file["state_dict_model"]["module.attention.weight"] = torch.zeros(2)


def change_shape(file: dict[str, Any]) -> None:
    file["state_dict_model"]["module.layer1.0.bn1.weight"] = torch.zeros(3)


def change_normed(file: dict[str, Any]) -> None:
    del file["state_dict_classifier"]["module.fc.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_missing, r"missing: backbone\.layer2\.1\.bn1\.running_mean"),
        (change_unknown, r"unknown: state_dict_model/attention\.weight"),
        (change_shape, r"layer1\.0\.bn1\.weight: \(3,\), resnet32 has \(16,\)"),
        (change_normed, "normed"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    file = mislas(build_model("resnet32", C))
    change(file)
    torch.save(file, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.pth")


def test_what_is_dropped_by_hand_is_told(tmp_path: Path) -> None:
    file = mislas(build_model("resnet32", C))
    change_unknown(file)
    torch.save(file, tmp_path / "a.pth")
    imported = import_checkpoint(tmp_path / "a.pth", drop=["*attention*"])
    assert imported.dropped == {"state_dict_model/attention.weight": "asked for by --drop"}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"state_dict": {"module.backbone.linears.0.weight": torch.zeros(2, 2)}}, "RIDE"),
        ({"state_dict": {"module.backbone.cb_block.conv1.weight": torch.zeros(2, 2)}}, "BBN"),
        ({"tuner": {}, "head": {}}, "LIFT"),
        ({"something": 1}, "no known family"),
        ([1, 2], "holds a list"),
    ],
)
def test_what_has_no_single_linear_head_is_refused_with_the_reason(file: Any, message: str, tmp_path: Path) -> None:
    torch.save(file, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.pth")


class Trap:
    """An object that would write a file if it were unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "run"))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({**mislas(build_model("resnet20", C)), "args": Trap(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is not run to find out"):
        import_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the trap works


def test_a_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    torch.save(torchvision(build_model("resnet20", C)), tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        import_checkpoint(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        import_checkpoint(tmp_path / "b.pth")


def test_counters_become_whole_numbers(tmp_path: Path) -> None:
    state = torchvision(build_model("resnet20", C))
    state = {k: v.float() + 0.5 if k.endswith("num_batches_tracked") else v for k, v in state.items()}
    torch.save(state, tmp_path / "a.pth")
    counters = [t for n, t in import_checkpoint(tmp_path / "a.pth").tensors.items() if n.endswith("tracked")]
    assert counters
    assert all(tensor.dtype == torch.int64 for tensor in counters)


def test_a_backbone_alone_starts_another_head(tmp_path: Path) -> None:
    original = build_model("resnet18", 1000, seed=3)
    torch.save(torchvision(original), tmp_path / "a.pth")
    imported = import_checkpoint(tmp_path / "a.pth", backbone_only=True)
    assert imported.num_classes is None
    save_tensors(imported.tensors, tmp_path / "a.safetensors")
    ours = build_model("resnet18", C, seed=9)
    block = ours.backbone.get_submodule(ours.last_block).state_dict()
    fresh = {name: tensor.clone() for name, tensor in block.items()}
    load_backbone(ours, tmp_path / "a.safetensors", fresh_last_block=True)
    assert torch.equal(ours.backbone.get_submodule("conv1").weight, original.backbone.get_submodule("conv1").weight)
    for name, tensor in ours.backbone.get_submodule(ours.last_block).state_dict().items():
        assert torch.equal(tensor, fresh[name])


def test_classes_are_sorted_by_count_then_id() -> None:
    assert sorted_by_count(np.array([5, 9, 5, 20, 9])).tolist() == [3, 1, 4, 0, 2]


def test_the_command_proves_an_import_and_sees_permuted_classes(btm: Btm, digit_images: Path, tmp_path: Path) -> None:
    """Train on real images, hand the model on as a MiSLAS checkpoint with its classes re-indexed, and import it."""
    import yaml

    from btm_core.config import load_experiment
    from btm_core.data import scan
    from btm_core.data.dataset import ImageFiles, LabelledImages
    from btm_core.training import part_trainer

    write_lists(digit_images)
    lines = (digit_images / "train.txt").read_text().splitlines(keepends=True)
    of_zero = [line for line in lines if line.endswith(" 0\n")]
    (digit_images / "train.txt").write_text("".join(line for line in lines if line not in of_zero[4:]))
    raw = small_experiment(format="list", root=str(digit_images), train="train.txt", test="test.txt")
    raw["model"] = {"backbone": "small_cnn"}
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(raw))
    config = load_experiment(tmp_path / "digits.yaml")
    catalog = scan(config.data)
    model = build_model("small_cnn", catalog.num_classes, 1)
    assert catalog.train.paths is not None
    images = ImageFiles(str(digit_images), catalog.train.paths)
    data = LabelledImages(images, torch.from_numpy(catalog.train.labels), config.data.input)
    train = config.pretrain.model_copy(update={"epochs": 25, "lr": 0.1})
    list(part_trainer(model, "all", data, train, seed=("t",)))
    order = torch.from_numpy(sorted_by_count(catalog.train_counts))
    assert order.tolist() != sorted(order.tolist())
    file = mislas(model)
    for name, tensor in file["state_dict_classifier"].items():
        file["state_dict_classifier"][name] = tensor[order]
    torch.save(file, tmp_path / "theirs.pth")
    command = ("import-checkpoint", "theirs.pth", "-o", "ours.safetensors", "--data", "digits.yaml")
    wrong = btm(*command, cwd=tmp_path)
    assert wrong.returncode == 0, wrong.stderr
    assert "classes look permuted" in wrong.stdout
    assert "import with --sorted-by-count" in wrong.stdout
    right = btm(*command, "--sorted-by-count", "--json", cwd=tmp_path)
    assert right.returncode == 0, right.stderr
    answer = json.loads(right.stdout)
    assert answer["probe"]["warnings"] == []
    assert answer["probe"]["accuracy"] > 0.6
    ours = build_model("small_cnn", catalog.num_classes, 1, seed=5)
    load_into(ours, tmp_path / "ours.safetensors")
    assert torch.equal(ours.head.weight, model.head.weight)
    refused = btm("import-checkpoint", "nothing.pth", "-o", "x.safetensors", cwd=tmp_path)
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr
