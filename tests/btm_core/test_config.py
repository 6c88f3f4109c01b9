from pathlib import Path
from typing import Any

import pytest

from btm_core.config import (
    ExperimentConfig,
    Section,
    canonical_digest,
    load_experiment,
    preset_names,
    with_absolute_paths,
)
from btm_core.data.sources import split_files
from btm_core.errors import ConfigError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_names_its_source(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.source
    assert ExperimentConfig.model_validate(experiment.model_dump()) == experiment


def test_the_paper_experiment_is_the_paper_recipe() -> None:
    paper = load_experiment("cifar100-lt")
    assert paper.model.backbone == "resnet32"
    assert (paper.sampling.num_subsets, paper.sampling.shots) == (10, 10)
    tuned = paper.finetune
    assert (tuned.epochs, tuned.batch_size, tuned.lr, tuned.weight_decay) == (30, 256, 5e-3, 5e-4)
    assert (tuned.schedule, tuned.momentum, tuned.train) == ("cosine", 0.9, "all")
    assert tuned.mixup_alpha == paper.pretrain.mixup_alpha == 1.0
    assert paper.post_train.epochs == 10


def test_a_reduction_inherits_all_it_does_not_name() -> None:
    paper, reduced = load_experiment("cifar100-lt"), load_experiment("cifar100-lt-cpu")
    assert reduced.post_train == paper.post_train
    assert reduced.data == paper.data
    assert reduced.pretrain.epochs < paper.pretrain.epochs
    assert reduced.published is None


def test_overrides() -> None:
    experiment = load_experiment(
        "digits-lt", ["finetune.lr=1e-3", "seed=7", "fc.epochs=3", "pretrain.mixup_alpha=0.5", "data.root=null"]
    )
    assert experiment.finetune.lr == 1e-3
    assert experiment.seed == 7
    assert experiment.fc is not None
    assert experiment.fc.epochs == 3
    assert experiment.finetune.mixup_alpha == 0.5  # follows pretrain unless it is set itself


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.learning_rate=1", "unknown key 'finetune.learning_rate'"),
        ("finetune.epoch=1", "did you mean 'finetune.epochs'?"),
        ("samplin.shots=1", "did you mean 'sampling'?"),
        ("fc.epoch=1", "did you mean 'fc.epochs'?"),
        ("sampling.shots=0", "sampling.shots: input should be greater than or equal to 1, found 0"),
        ("sampling.shots=many", "found 'many'"),
        ("finetune.lr=-1", "finetune.lr: input should be greater than 0"),
        ("model.backbone=resnet31", "model.backbone"),
        ("data.input.mean=[1, 2]", "mean has 2 values, expected 1"),
        ("data.format=list", "format list needs root, train, test: set them"),
        ("data.format=cifar100", "input.augmentation"),
        ("finetune.lr=.inf", "finetune.lr"),
        ("data.input.std=[.nan]", "data.input.std"),
        ("seed=true", "seed"),
        ("data.input.resize=4", "less than the crop"),
        ("pretrain={epochs: 2, nesterov: true, momentum: 0}", "nesterov needs a momentum"),
        ("seed", "expected KEY=VALUE"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_a_wrong_value_gets_one_message(override: str, message: str) -> None:
    overrides = [override]
    if override == "data.format=cifar100":
        overrides.append("data.input.augmentation=random-resized-crop")
        message = "augmentation"
    with pytest.raises(ConfigError) as error:
        load_experiment("digits-lt", overrides)
    assert message in str(error.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'digits-lt'\?"):
        load_experiment("digit-lt")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "my data.yaml"
    file.write_text("preset: cifar100-lt\ndata: {root: images}\nfinetune: {lr: 1e-2}\n")
    experiment = load_experiment(file)
    assert experiment.name == "my-data"
    assert experiment.data.root == str(tmp_path / "images")
    assert experiment.finetune.lr == 0.01
    assert experiment.finetune.epochs == 30
    (tmp_path / "mine.txt").write_text("")
    file.write_text("data: {format: list, root: images, train: mine.txt, test: other.txt}\n")
    lists = load_experiment(file).data
    assert (lists.train, lists.test) == (str(tmp_path / "mine.txt"), "other.txt")
    file.write_text("data: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_experiment(file)
    file.write_text("- 1")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_experiment(file)
    file.write_text("preset: none\n")
    with pytest.raises(ConfigError, match="'none' is unknown"):
        load_experiment(file)


def test_local_paths_become_absolute_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `btm_core.data.sources` looks for files of the splits: below the root, or else below the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("images/train.txt", "train.txt", "test.txt", "val.txt"):
        (tmp_path / name).touch()
    given = {
        "data": {"format": "list", "root": "images", "train": "train.txt", "test": "test.txt", "validation": "no.txt"},
        "pretrain": {"initial": "backbone.safetensors"},
        "sampling": {"num_subsets": 2, "lists": ["a.txt", "s3://b/b.txt"]},
    }
    given["data"]["class_names"] = "names.txt"
    config = ExperimentConfig.model_validate(given)
    found = with_absolute_paths(config)
    data = found.data
    assert (data.root, data.class_names) == (str(tmp_path / "images"), str(tmp_path / "names.txt"))
    assert (data.train, data.test, data.validation) == ("train.txt", str(tmp_path / "test.txt"), "no.txt")
    assert found.pretrain.initial == str(tmp_path / "backbone.safetensors")
    assert found.sampling.lists == (str(tmp_path / "a.txt"), "s3://b/b.txt")
    assert found.identity() == config.identity() and with_absolute_paths(found) == found
    monkeypatch.chdir(tmp_path / "images")
    files = dict(split_files(data.model_copy(update={"validation": None})))
    assert files == {"train": str(tmp_path / "images/train.txt"), "test": str(tmp_path / "test.txt")}


def test_folders_of_image_folder_stay_below_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    data = {"format": "image_folder", "root": ".", "train": "train", "test": "test"}
    found = with_absolute_paths(ExperimentConfig.model_validate({"data": data})).data
    assert (found.root, found.train, found.test) == (str(tmp_path), "train", "test")


def test_locations_are_no_identity_and_all_else_is() -> None:
    base = load_experiment("cifar100-lt")
    for override in ("data.root=/elsewhere", "pretrain.checkpoint=/x", "name=other", "data.download=false"):
        assert load_experiment("cifar100-lt", [override]).identity() == base.identity()
    for override in ("seed=1", "data.imbalance_factor=50", "finetune.lr=0.1", "data.input.crop_padding=3"):
        assert load_experiment("cifar100-lt", [override]).identity() != base.identity()


def test_sections_are_frozen() -> None:
    experiment = load_experiment("digits-lt")
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1  # type: ignore[misc]


def test_every_field_is_described() -> None:
    def fields(section: type[Section]) -> list[str]:
        return [
            f"{section.__name__}.{name}"
            for name, field in section.model_fields.items()
            if not field.description and not (isinstance(field.default, Section) or "Config" in str(field.annotation))
        ]

    described = {"seed", "name", "momentum", "nesterov", "weight_decay", "gamma", "epochs", "batch_size", "lr"}
    missing = [
        entry for cls in Section.__subclasses__() for entry in fields(cls) if entry.split(".")[1] not in described
    ]
    assert not [entry for entry in missing if entry.startswith(("Data", "Input", "Model", "Sampling", "Train"))]


def test_digests_do_not_depend_on_key_order() -> None:
    assert canonical_digest({"a": 1, "b": [1.5, None]}) == canonical_digest({"b": [1.5, None], "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_digest({"a": float("nan")})


def test_every_key_says_what_it_is() -> None:
    """In its description; a section does in its docstring. Forms and the reference are made of them."""
    silent = []

    def look(properties: dict[str, Any], definitions: dict[str, Any], path: str) -> None:
        for key, facts in properties.items():
            name = facts.get("$ref", "").rpartition("/")[2]
            if not (facts.get("description") or definitions.get(name, {}).get("description")):
                silent.append(f"{path}.{key}")

    schema = ExperimentConfig.model_json_schema()
    for name, section in {"": schema, **schema["$defs"]}.items():
        look(section["properties"], schema["$defs"], name)
        assert section["description"], name
    assert not silent
