"""Miniature checkpoints in every published format, built from the published key tables, and what is made of them."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_INPUT, Btm, small_experiment, write_lists
from numpy.typing import NDArray
from torch import Tensor

from btm_core.checkpoints import (
    CheckpointMetadata,
    check_classes,
    load_backbone,
    load_checkpoint,
    load_into,
    read_metadata,
    save_checkpoint,
    save_tensors,
)
from btm_core.config import DataConfig, InputConfig, load_experiment
from btm_core.data import Catalog, scan
from btm_core.errors import CheckpointError
from btm_core.importing import import_checkpoint
from btm_core.importing.class_order import rename, settle_ties, sorted_by_count, tied_classes
from btm_core.importing.probe import probe
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


def pascl_on_cifar(model: Classifier) -> dict[str, Any]:
    backbone, head = parts(model)
    state = {name.replace(".downsample.", ".shortcut."): tensor for name, tensor in backbone.items()} | linear(head)
    state |= linear(head, "aux_linear") | {"projection.0.weight": torch.zeros(4, 4)}
    return {"model": prefixed(state, "module."), "optimizer": {}, "scheduler": {}, "epoch": 1}


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
    "pascl, cifar": (pascl_on_cifar, "cifar_resnet18"),
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


def extra_scaling(model: Classifier) -> dict[str, Any]:
    return torchvision(model) | {"fc.learned_norm": torch.full((1, C), 2.0)}


def extra_head(model: Classifier) -> dict[str, Any]:
    file = mislas(model)
    file["state_dict_classifier"] |= {"fc2.weight": torch.zeros(2, 2), "scale": torch.full((1,), 2.0)}
    return file


def extra_paco(model: Classifier) -> dict[str, Any]:
    file = paco(model)
    file["state_dict"]["module.linear.scale"] = torch.full((1,), 2.0)
    return file


def two_scalings(model: Classifier) -> dict[str, Any]:
    norms = {"learned_norm": torch.ones(1, C), "module.other": torch.full((1, C), 2.0)}
    return mislas(model) | {"state_dict_lws_model": norms}


@pytest.mark.parametrize(
    ("make", "left_over"),
    [
        (extra_scaling, ["fc.learned_norm"]),
        (extra_head, ["state_dict_classifier/fc2.weight", "state_dict_classifier/scale"]),
        (extra_paco, ["linear.scale"]),
        (two_scalings, ["state_dict_lws_model/other"]),
    ],
)
def test_what_the_head_has_besides_a_linear_layer_is_refused(make: Any, left_over: list[str], tmp_path: Path) -> None:
    torch.save(make(build_model("resnet20", C)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(tmp_path / "a.pth")
    assert all(f"unknown: {name}" in str(error.value) for name in left_over)
    imported = import_checkpoint(tmp_path / "a.pth", drop=left_over)
    assert {imported.dropped[name] for name in left_over} == {"asked for by --drop"}
    imported = import_checkpoint(tmp_path / "a.pth", backbone_only=True)
    assert set(left_over) <= set(imported.dropped)


@pytest.mark.parametrize(("key", "ema"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_are_told_or_taken(key: str, ema: str, tmp_path: Path) -> None:
    plain, averaged = build_model("resnet20", C, seed=1), build_model("resnet20", C, seed=2)
    states = {key: torchvision(plain), ema: prefixed(torchvision(averaged), "module.")}
    states[ema]["n_averaged"] = torch.tensor(7)
    others = {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}, "epoch": 3, "metric": torch.tensor(0.5)}
    torch.save({**states, **others}, tmp_path / "a.pth")
    imported = import_checkpoint(tmp_path / "a.pth")
    assert torch.equal(imported.tensors["head.weight"], plain.head.weight)
    assert "--ema" in imported.dropped[f"{ema}/module.fc.weight"]
    assert "optimizer/state/0/momentum_buffer" in imported.dropped
    assert not any(name.startswith("metric") for name in imported.dropped)  # a figure, no weights
    imported = import_checkpoint(tmp_path / "a.pth", ema=True)
    assert torch.equal(imported.tensors["head.weight"], averaged.head.weight)
    assert any("fc.weight" in name and "not averaged" in name for name in imported.dropped)
    assert not any("ema" in name for name in imported.dropped)
    torch.save({key: states[key]}, tmp_path / "a.pth")
    message = "--ema needs one state dict of averaged weights beside the others; found: none"
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.pth", ema=True)


def test_mappings_of_tensors_beside_those_that_are_read_are_told(tmp_path: Path) -> None:
    model = build_model("resnet20", C)
    for file in (mislas(model), decoupling(model), paco(model), torchvision(model)):
        torch.save(file | {"prototypes": {"a": torch.zeros(2, 2)}, "centroids": torch.zeros(2)}, tmp_path / "a.pth")
        imported = import_checkpoint(tmp_path / "a.pth", drop=["backbone.centroids", "centroids"])
        assert {"prototypes/a", "centroids"} <= set(imported.dropped)


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "module.module.", "_orig_mod.", "_orig_mod.module."])
def test_wrappers_may_lie_in_any_order(prefix: str, tmp_path: Path) -> None:
    model = build_model("resnet20", C)
    file = otmix(model)
    file["state_dict"] = {prefix + name.removeprefix("module."): t for name, t in file["state_dict"].items()}
    torch.save(file, tmp_path / "a.pth")
    assert torch.equal(import_checkpoint(tmp_path / "a.pth").tensors["head.weight"], model.head.weight)
    file["state_dict"]["linear.weight"] = torch.zeros(C, 64)
    torch.save(file, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"linear\.weight is there twice, under several prefixes"):
        import_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "bn1.weight",
            torch.full((16,), torch.nan),
            r"holds values that are no weights:\n  .*bn1\.weight: NaN or infinite",
        ),
        ("linear.bias", torch.full((C,), torch.inf), r"linear\.bias: NaN or infinite"),
        ("conv1.weight", torch.ones(16, 3, 3, 3, dtype=torch.int64), r"conv1\.weight: torch\.int64"),
        ("linear.weight", torch.zeros(C), r"linear\.weight has shape \(7,\), expected \(classes, features\)"),
        ("conv1.weight", torch.zeros(3), r"conv1\.weight: \(3,\), resnet20 has"),
        ("bn1.num_batches_tracked", torch.zeros(2), r"num_batches_tracked: \(2,\)"),
    ],
)
def test_values_that_are_no_weights_are_refused_by_name(name: str, value: Tensor, message: str, tmp_path: Path) -> None:
    file = otmix(build_model("resnet20", C))
    assert f"module.{name}" in file["state_dict"]
    file["state_dict"][f"module.{name}"] = value
    torch.save(file, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(1, 5), r" has shape \(1, 5\); the learnt scaling of 7 classes is \(1, 7\)"),
        (torch.full((1, C), torch.nan), r" holds NaN, infinite or whole \(torch.float32\) values: no learnt scaling"),
        (torch.ones(1, C).long(), r" holds NaN, infinite or whole \(torch.int64\) values: no learnt scaling"),
    ],
)
def test_a_scaling_that_does_not_fit_is_refused(scale: Tensor, message: str, tmp_path: Path) -> None:
    torch.save(mislas(build_model("resnet20", C)) | {"state_dict_lws_model": {"learned_norm": scale}}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=f"state_dict_lws_model/learned_norm{message}"):
        import_checkpoint(tmp_path / "a")


def test_the_backbone_of_a_normed_head_can_be_taken(tmp_path: Path) -> None:
    """What the refusal advises."""
    file = mislas(build_model("resnet32", C))
    change_normed(file)
    torch.save(file, tmp_path / "a.pth")
    imported = import_checkpoint(tmp_path / "a.pth", backbone_only=True)
    assert imported.num_classes is None
    assert "state_dict_classifier/fc.weight" in imported.dropped


OWN = CheckpointMetadata(
    backbone="resnet20",
    channels=3,
    size=32,
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
    class_names=tuple("abcdefg"),
    train_counts=tuple(range(C)),
    stage="merge",
)


def test_a_checkpoint_of_ours_keeps_its_class_map(btm: Btm, tmp_path: Path) -> None:
    save_checkpoint(build_model("resnet20", C), tmp_path / "own.safetensors", OWN)
    done = btm("import-checkpoint", "own.safetensors", "-o", "new.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metadata = read_metadata(tmp_path / "new.safetensors")
    assert metadata is not None
    kept = {"class_names", "train_counts", "backbone", "size", "mean", "std", "channels"}
    assert metadata.model_dump(include=kept) == OWN.model_dump(include=kept)
    check_classes(tmp_path / "new.safetensors", tuple("abcdefg"))
    with pytest.raises(CheckpointError, match="was trained on other classes, or in another order: "):
        check_classes(tmp_path / "new.safetensors", tuple("gfedcba"))


def test_a_checkpoint_of_ours_is_put_into_the_order_of_the_data(btm: Btm, digit_images: Path, tmp_path: Path) -> None:
    import yaml

    raw = small_experiment(format="image_folder", root=str(digit_images))
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(raw))
    model = build_model("small_cnn", 3, 1)
    names = ("digit-2", "digit-0", "digit-1")
    own = OWN.model_copy(update={"backbone": "small_cnn", "channels": 1, "size": 8, "mean": (0.3,), "std": (0.4,)})
    own = own.model_copy(update={"class_names": names, "train_counts": (5, 20, 8)})
    save_checkpoint(model, tmp_path / "own.safetensors", own)
    done = btm("import-checkpoint", "own.safetensors", "-o", "new.safetensors", "--data=digits.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    new, metadata = load_checkpoint(tmp_path / "new.safetensors")
    assert (metadata.class_names, metadata.train_counts) == (("digit-0", "digit-1", "digit-2"), (20, 8, 5))
    assert torch.equal(new.head.weight, model.head.weight[[1, 2, 0]])


def test_a_probe_that_fails_leaves_no_file(digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml
    from typer.testing import CliRunner

    from flows.cli import app

    raw = small_experiment(format="image_folder", root=str(digit_images))
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(raw))
    save_tensors(build_model("small_cnn", 3, 1).state_dict(), tmp_path / "own.safetensors")
    images = list((digit_images / "test").rglob("*.png"))

    def broken(*arguments: Any) -> None:
        for image in images:
            image.unlink()
        return original(*arguments)

    from btm_core import importing

    original = importing.probe
    monkeypatch.setattr(importing, "probe", broken)
    folder = tmp_path / "out"
    arguments = [str(tmp_path / "own.safetensors"), "-o", str(folder / "new.safetensors")]
    done = CliRunner().invoke(app, ["import-checkpoint", *arguments, "--data", str(tmp_path / "digits.yaml")])
    assert done.exit_code != 0
    assert list(folder.iterdir()) == []


def test_an_import_that_cannot_be_written_is_one_message(btm: Btm, tmp_path: Path) -> None:
    torch.save(mislas(build_model("resnet20", C)), tmp_path / "a.pth")
    (tmp_path / "file").write_text("")
    for output, reason in {
        "file/new.safetensors": "cannot be written: ",
        ".": ". is a folder, expected a file to",
    }.items():
        done = btm("import-checkpoint", "a.pth", "-o", output, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr
    torch.save(
        mislas(build_model("resnet20", C)) | {"state_dict_lws_model": {"learned_norm": torch.ones(1, 5)}},
        tmp_path / "a.pth",
    )
    done = btm("import-checkpoint", "a.pth", "-o", "x.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.safetensors").exists()


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
        ({"something": 1}, r"a.pth is of no known family; its top level holds\n  something"),
        ([1, 2], "holds a list, expected a dict of tensors or of state dicts"),
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
    with pytest.raises(CheckpointError, match="would run, so it is not loaded") as error:
        import_checkpoint(tmp_path / "a.pth")
    message = str(error.value)
    assert "names code (" in message
    assert "\x1b" not in message and "\n" not in message
    assert "weights_only" not in message and "add_safe_globals" not in message
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the trap works


def test_a_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    torch.save(torchvision(build_model("resnet20", C)), tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    for broken in (data[: len(data) // 2], b"plain text\n", b"\x80\x02(K", b""):
        (tmp_path / "a.pth").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"a\.pth is no readable checkpoint: ") as error:
            import_checkpoint(tmp_path / "a.pth")
        assert "\n" not in str(error.value)
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


def test_a_renaming_of_right_classes_gains_nothing_and_one_of_permuted_classes_finds_them() -> None:
    """A head that is right on 40 % of 2,000 images of 365 classes, as on Places-LT, and otherwise anywhere."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(365), 6)
    predicted = np.where(random.random(len(labels)) < 0.4, labels, random.integers(0, 365, len(labels)))
    accuracy = (predicted == labels).mean()
    assert (rename(labels, predicted, 365) == labels).mean() <= accuracy
    permuted = random.permutation(365)[predicted]
    assert (permuted == labels).mean() < 0.02
    assert (rename(labels, permuted, 365) == labels).mean() > 0.5 * accuracy


@pytest.fixture(scope="module")
def published(cifar100: Path, stage1_checkpoint: Path) -> tuple[Classifier, Catalog, InputConfig]:
    """A long-tailed head of the published recipe: eleven of its classes have no recall, others take their images."""
    config = load_experiment("cifar100-lt", overrides=[f"data.root={cifar100}"]).data
    model = build_model("resnet32", 100, 3)
    load_into(model, stage1_checkpoint)
    return model, scan(config), config.input


def with_rows(model: Classifier, rows: NDArray[np.int64]) -> Classifier:
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in found.head.named_parameters():
            tensor.copy_(model.head.get_parameter(name)[rows])
    return found


def test_a_head_that_never_says_some_classes_is_not_called_permuted(
    published: tuple[Classifier, Catalog, InputConfig],
) -> None:
    model, catalog, view = published
    assert probe(model, catalog, view).warnings == ()
    rows = np.arange(100)
    rows[:15] = np.roll(rows[:15], 1)  # some classes are enough
    [warning] = probe(with_rows(model, rows), catalog, view).warnings
    assert "classes look permuted" in warning and "--classes" in warning


def test_classes_of_equal_counts_are_told_apart_by_their_training_images(
    published: tuple[Classifier, Catalog, InputConfig],
) -> None:
    model, catalog, view = published
    groups = tied_classes(catalog.train_counts)
    assert len(np.concatenate(groups)) >= 25 and {catalog.train_counts[c] for c in groups[-1]} == {5}
    assert settle_ties(model, catalog, view).tolist() == list(range(100))
    rows, random = np.arange(100), np.random.default_rng(0)
    for group in groups:
        rows[group] = random.permutation(group)
    found = settle_ties(with_rows(model, rows), catalog, view)
    assert rows[found].tolist() == list(range(100))


def test_a_probe_near_chance_warns() -> None:
    """A model that says one class to everything: no renaming helps, so its classes are not called permuted."""
    config = DataConfig(format="digits", imbalance_factor=50, input=SMALL_INPUT)  # type: ignore[arg-type]
    catalog = scan(config)
    model = build_model("small_cnn", 10, 1)
    with torch.no_grad():
        model.head.bias[4] = 1e3
    found = probe(model, catalog, config.input, images=200)
    assert (found.images, found.accuracy, found.relabelled_accuracy) == (200, 0.1, 0.1)
    [warning] = found.warnings
    assert "accuracy is 10.0 %, near chance (10.0 %)" in warning
    assert "normalised otherwise" in warning


def test_the_command_proves_an_import_and_sees_permuted_classes(btm: Btm, digit_images: Path, tmp_path: Path) -> None:
    """Train on real images, hand the model on as a MiSLAS checkpoint with its classes re-indexed, and import it."""
    import yaml

    from btm_core.data.dataset import LabelledImages
    from btm_core.data.images import ImageFiles
    from btm_core.training import part_trainer

    write_lists(digit_images)
    lines = (digit_images / "train.txt").read_text().splitlines(keepends=True)
    of_zero = [line for line in lines if line.endswith(" 0\n")]
    (digit_images / "train.txt").write_text("".join(line for line in lines if line not in of_zero[5:]))
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
    assert sorted_by_count(catalog.train_counts).tolist() == [1, 0, 2]
    order = torch.tensor([1, 2, 0])  # an unstable sort leaves classes of equal counts in any order
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
    assert "2 classes whose counts others share changed places" in answer["notes"][-1]
    ours = build_model("small_cnn", catalog.num_classes, 1, seed=5)
    load_into(ours, tmp_path / "ours.safetensors")
    assert torch.equal(ours.head.weight, model.head.weight)
    refused = btm("import-checkpoint", "nothing.pth", "-o", "x.safetensors", cwd=tmp_path)
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr
