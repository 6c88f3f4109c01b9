"""What a configuration can be wrong in, and that each message names the key, what is expected, what was found."""

from pathlib import Path

import pytest

from btm_core.ablations import ABLATIONS, with_values
from btm_core.config import load_experiment
from btm_core.config.loading import MAX_YAML
from btm_core.errors import ConfigError
from btm_core.models import build_model

OVERRIDES = {
    "a section": (["finetune=3"], "finetune: expected a section, that is keys with values", "found 3"),
    "nothing": (["data=null"], "data: expected a section, that is keys with values", "found nothing"),
    "a list": (["sampling.lists=a.txt"], "sampling.lists: expected a list, as [a, b], found 'a.txt'"),
    "two dots": (["finetune..lr=1"], "override 'finetune..lr=1': expected KEY=VALUE, for instance finetune.lr=0.01"),
    "no key": (["=1"], "override '=1': expected KEY=VALUE"),
    "yaml": (["seed=["], "override of 'seed': the value is not valid YAML: expected the node content"),
    "std": (["data.input.std=[0]"], "data.input: std must be above 0 in every channel, found [0.0]"),
    "two splits": (
        ["data.validation=val.txt", "data.validation_per_class=2"],
        "validation gives a split, validation_per_class carves one: set one of them",
    ),
    "no files": (["data.validation=val.txt"], "format digits has no files to give: carve a split with validation_per"),
    "image_folder": (["data.format=image_folder"], "format image_folder needs root, the folder that holds train/CLASS"),
    "grey": (
        ["data.input={size: 8, augmentation: crop}"],
        "format digits has grey images: set input.channels to 1, and one value of mean and std",
    ),
    "small": (
        ["data.input.augmentation=random-resized-crop"],
        "format digits has small images: set input.augmentation to crop-flip, crop or none",
    ),
    "two starts": (
        ["pretrain.checkpoint=a", "pretrain.initial=b"],
        "pretrain: checkpoint replaces stage 1, initial starts it: set one of them",
    ),
    "mixup": (
        ["pretrain.method=paco", "pretrain.mixup_alpha=1"],
        "mixup_alpha belongs to cross_entropy and balanced_softmax, not to paco: set it to 0",
    ),
    "paco": (
        ["pretrain.method=paco", "pretrain.mixup_alpha=0", "pretrain.train=head"],
        "paco trains the whole network: its momentum encoder follows all of it",
    ),
    "quorum": (
        ["finetune.quorum=11"],
        "finetune.quorum is 11, but sampling.num_subsets is 10: lower one, or raise the other",
    ),
    "criterion": (
        ["merge.strategy=greedy_h_mean", "merge.criterion=validation"],
        "merge.criterion is validation, but there is no validation split; set data.validation or",
    ),
    "credentials": (
        ["data.root=s3://me:secret@bucket/x"],
        "data.root: the URL carries credentials, which would get into reports and logs; leave them out",
    ),
}


@pytest.mark.parametrize(("overrides", "parts"), [(o, p) for o, *p in OVERRIDES.values()], ids=OVERRIDES)
def test_what_is_set_on_top(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment("digits-lt", overrides)
    assert str(error.value).startswith(("digits-lt: ", "override "))
    for part in parts:
        assert part in str(error.value)
    assert "secret" not in str(error.value)


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "my.yaml must hold a mapping of sections (data, model, ...), found nothing: it is empty"),
    "a list": (b"- a\n- b\n", "my.yaml must hold a mapping of sections (data, model, ...), found a list"),
    "an image": (b"\x89PNG\r\n", "my.yaml is not UTF-8 text, as YAML has to be: byte 0x89 at 0; save it as UTF-8"),
    "another encoding": ("data: café\n".encode("latin-1"), "is not UTF-8 text, as YAML has to be: byte 0xe9 at 9"),
    "tabs": (
        b"data:\n\tformat: digits\n",
        r"my.yaml, line 2, column 1 is not valid YAML: found character '\t' that cannot start any token; YAML is "
        "indented by spaces, not by tabs",
    ),
    "a bracket": (b"data: [\nmodel: x\n", "my.yaml, line 3, column 1 is not valid YAML: expected ',' or ']'"),
    "too long": (
        b"#" * (MAX_YAML + 1),
        f"has {MAX_YAML + 1} characters, more than the {MAX_YAML} of any configuration",
    ),
    "aliases": (
        b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n".encode()
            for old, new in zip("abcde", "bcdef", strict=True)
        ),
        f"my.yaml is not valid YAML: its aliases make more than {MAX_YAML} values",
    ),
    "a key twice": (
        b"preset: digits-lt\nseed: 1\nfinetune: {lr: 0.1}\nseed: 2\n",
        "my.yaml, line 4, column 1 is not valid YAML: key 'seed' is there twice",
    ),
    "preset": (b"preset: cifar\n", "my.yaml: preset 'cifar' is unknown; presets are cifar100-lt, "),
    "no such key": (b"preset: digits-lt\nfintune: {lr: 1}\n", "unknown key 'fintune'; did you mean 'finetune'?"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_what_a_file_holds(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "my.yaml")
    assert message in str(error.value)
    assert str(tmp_path / "my.yaml") in str(error.value)
    assert len(str(error.value)) < 700


def test_editors_marks_and_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"\xef\xbb\xbfpreset: digits-lt\r\nfinetune:\r\n  lr: 0.5\r\n")
    assert load_experiment(tmp_path / "my.yaml").finetune.lr == 0.5


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.yaml").write_text("preset: digits-lt")
    (tmp_path / "images").mkdir()
    for name, message in {
        "bird.yaml": "the file 'bird.yaml' does not exist: did you mean 'birds.yaml'?",
        "fish.yaml": f"the file 'fish.yaml' does not exist: it was looked for in '{tmp_path}'",
        "absent/my": "the file 'absent/my' does not exist",
        "images": "'images' is a folder, expected a preset or a YAML file",
        "digit": "'digit' is neither a preset nor a file: did you mean 'digits-lt'? presets are cifar100-lt, ",
    }.items():
        with pytest.raises(ConfigError) as error:
            load_experiment(name)
        assert message in str(error.value)


def test_ablations_and_networks() -> None:
    experiment = load_experiment("cifar100-lt-gml")
    with pytest.raises(
        ConfigError, match=r"gml ablation compares another post_train\.method with gml; start from such"
    ):
        ABLATIONS["gml"][1](experiment)
    with pytest.raises(ConfigError, match=r"unknown key 'merge\.strategies'; did you mean 'merge\.strategy'\?"):
        with_values(experiment, {"merge.strategies": 1})
    with pytest.raises(ConfigError, match="unknown backbone 'vgg'; known are small_cnn, resnet20"):
        build_model("vgg", 2, 3)
