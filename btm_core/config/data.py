"""The data of an experiment: where the images are, how they are split, and what the network sees of them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from btm_core.config.section import NOT_IDENTITY, Probability, Section
from btm_core.urls import Location

__all__ = ["DataConfig", "InputConfig"]


class InputConfig(Section):
    """What the network sees: size, channels, normalisation, augmentation."""

    size: int = Field(224, ge=4, le=1024, description="side of the square input, pixels")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for RGB; images are converted")
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="per channel, of pixels in [0, 1]")
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="per channel, of pixels in [0, 1]")
    augmentation: Literal["none", "crop", "crop-flip", "random-resized-crop"] = Field(
        "random-resized-crop",
        description="training augmentation; all but the last work on images decoded once to `size`",
    )
    crop_padding: int = Field(4, ge=0, description="zero padding before a random crop, pixels")
    color_jitter: Probability = Field(0.0, description="strength of brightness, contrast and saturation jitter")
    resize: int | None = Field(
        None, ge=4, description="shorter side before the centre crop at test time, pixels; None: size * 256 / 224"
    )

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, expected {self.channels}, one a channel")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be above 0 in every channel, found {list(self.std)}")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize is {self.resize}, less than the crop of size {self.size}")
        return self

    @property
    def decode_once(self) -> bool:
        """Whether images can be decoded once to `size` and kept as pixels (no crop of varying scale is wanted)."""
        return self.augmentation != "random-resized-crop"

    @property
    def test_resize(self) -> int:
        """Shorter side before the centre crop at test time, pixels; `size` where images are decoded once."""
        return self.size if self.decode_once else self.resize or round(self.size * 256 / 224)


class DataConfig(Section):
    """Where the images and labels are, and how a long tail is cut from a balanced set."""

    format: Literal["digits", "cifar100", "list", "image_folder", "csv", "parquet", "inaturalist"] = Field(
        description="reader to use"
    )
    root: Location | None = Field(
        None, json_schema_extra=NOT_IDENTITY, description="folder of the images, a path or an s3:// URL"
    )
    train: Location | None = Field(
        None,
        json_schema_extra=NOT_IDENTITY,
        description="list, CSV or Parquet file of the training split; for image_folder its folder under root",
    )
    test: Location | None = Field(None, json_schema_extra=NOT_IDENTITY, description="the same of the test split")
    validation: Location | None = Field(
        None,
        json_schema_extra=NOT_IDENTITY,
        description="the same of a validation split, on which settings may be chosen; none by default",
    )
    validation_per_class: int | None = Field(
        None,
        ge=1,
        description="carve a validation split: training images a class, at most half of a class",
    )
    class_names: Location | None = Field(
        None, json_schema_extra=NOT_IDENTITY, description="text file with one class name a line, in label order"
    )
    path_column: str = Field("path", json_schema_extra=NOT_IDENTITY, description="CSV and Parquet: column of paths")
    label_column: str = Field("label", json_schema_extra=NOT_IDENTITY, description="CSV and Parquet: column of labels")
    download: bool = Field(
        True, json_schema_extra=NOT_IDENTITY, description="cifar100: fetch the official archive if root lacks it"
    )
    imbalance_factor: float | None = Field(
        None, ge=1, description="cut a long tail: training images of the first class over those of the last"
    )
    split_seed: int = Field(0, ge=0, description="seed of the cut, of carving, and of the train/test split of digits")
    test_per_class: int = Field(60, ge=1, le=120, description="digits: test images held out a class")
    input: InputConfig = InputConfig()

    @model_validator(mode="after")
    def _knows_where_to_look(self) -> Self:
        if self.format in ("list", "csv", "parquet", "inaturalist"):
            missing = [name for name in ("root", "train", "test") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"format {self.format} needs {', '.join(missing)}: set them")
        if self.validation is not None and self.validation_per_class is not None:
            raise ValueError("validation gives a split, validation_per_class carves one: set one of them")
        if self.validation is not None and self.format in ("digits", "cifar100"):
            raise ValueError(f"format {self.format} has no files to give: carve a split with validation_per_class")
        if self.format == "image_folder" and self.root is None:
            raise ValueError("format image_folder needs root, the folder that holds train/CLASS and test/CLASS")
        if self.format == "digits" and self.input.channels != 1:
            raise ValueError("format digits has grey images: set input.channels to 1, and one value of mean and std")
        if self.format in ("digits", "cifar100") and not self.input.decode_once:
            raise ValueError(
                f"format {self.format} has small images: set input.augmentation to crop-flip, crop or none"
            )
        return self
