"""iNaturalist's JSON: what is read, and that each mistake in it is told by file and place."""

import json
from pathlib import Path
from typing import Any

import pytest

from btm_core.config import DataConfig
from btm_core.data import scan
from btm_core.data.inaturalist import parse_inaturalist
from btm_core.errors import DataError


def document(root: Path, split: str) -> dict[str, Any]:
    paths = sorted(path.relative_to(root) for path in (root / split).rglob("*.png"))
    return {
        "images": [{"id": 7 * i, "file_name": str(path)} for i, path in enumerate(paths)],
        "annotations": [
            {"id": i, "image_id": 7 * i, "category_id": int(path.parts[1][-1])}
            for i, path in reversed([*enumerate(paths)])
        ],
        "categories": [{"id": c, "name": f"species {c}"} for c in (1, 0, 2)],
    }


def test_a_data_set_is_read_with_its_class_names(digit_images: Path) -> None:
    for split in ("train", "test"):
        (digit_images / f"{split}.json").write_text(json.dumps(document(digit_images, split)))
    config = DataConfig(format="inaturalist", root=str(digit_images), train="train.json", test="test.json")
    catalog = scan(config)
    folders = sorted({path.parent.name for path in (digit_images / "train").rglob("*.png")})
    assert catalog.class_names == tuple(f"species {folder[-1]}" for folder in folders)
    assert catalog.train.paths is not None
    for path, label in zip(catalog.train.paths, catalog.train.labels.tolist(), strict=True):
        assert path.split("/")[1] == f"digit-{label}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), "no list 'annotations'"),
        (lambda d: d["annotations"].pop(), "1 images have no annotation"),
        (lambda d: d["annotations"].append({"image_id": 999, "category_id": 0}), "not listed"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "is there twice"),
        (lambda d: d["annotations"][0].update(category_id="oak"), "no whole number"),
        (lambda d: d["images"][0].pop("file_name"), r"images\[0\] lacks id or file_name"),
        (lambda d: d["categories"].pop(1), "without gaps"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_place(digit_images: Path, change: Any, message: str) -> None:
    content = document(digit_images, "train")
    change(content)
    with pytest.raises(DataError, match=message) as refusal:
        parse_inaturalist(json.dumps(content), "train2018.json")
    assert "train2018.json" in str(refusal.value)


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        parse_inaturalist("{", "x.json")
