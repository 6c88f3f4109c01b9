"""CSV and Parquet files with a column of paths and a column of labels, which are numbers or class names."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.config import DataConfig
from btm_core.data.catalog import Split
from btm_core.data.sources import class_names, inside, missing_file, split_files
from btm_core.errors import DataError, some_of
from btm_core.storage import read_bytes

__all__ = ["read_tables"]


def read_tables(config: DataConfig) -> tuple[list[Split], tuple[str, ...] | None]:
    """Return the splits and, if the labels are names, the class names.

    Raises DataError with the file and the row of whatever is wrong.
    """
    read = _reader(config)
    tables = {}
    for name, file in split_files(config):
        try:
            table = read(io.BytesIO(read_bytes(file)))
        except FileNotFoundError:
            raise missing_file(name, file) from None
        except (ValueError, OSError) as error:
            raise DataError(
                f"{file} cannot be read as {config.format}: {error}; correct the file, data.format or data.{name}"
            ) from None
        for column in (config.path_column, config.label_column):
            if column not in table.columns:
                found = ", ".join(map(repr, map(str, table.columns)))
                raise DataError(
                    f"{file} has no column {column!r}, it has {found}; set data.path_column and data.label_column to "
                    "columns of it (in a CSV file, commas separate them)"
                )
            empty = np.flatnonzero(table[column].isna())
            if len(empty):
                raise DataError(
                    f"{file}, row {empty[0] + 1}: column {column!r} is empty ({len(empty)} such rows); fill "
                    "or drop them"
                )
        if not len(table):
            raise DataError(f"{file} has columns but no rows, so there is no image in data.{name}")
        tables[name] = (file, table[config.path_column].astype(str).tolist(), table[config.label_column])
    names, encode = _label_encoder(tables["train"][2], class_names(config))
    splits = []
    for name, (file, paths, labels) in tables.items():
        rows = [f"row {number}" for number in range(1, len(paths) + 1)]
        splits.append(Split(name, encode(labels, file), inside(paths, file, rows)))
    return splits, names


def _reader(config: DataConfig) -> Callable[[Any], Any]:
    import pandas as pd

    if config.format == "parquet":
        return pd.read_parquet
    # A class may be called NA or None: only an empty cell is empty.
    return partial(pd.read_csv, dtype={config.path_column: str}, keep_default_na=False, na_values=[""])


def _label_encoder(
    train_labels: Any, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...] | None, Callable[[Any, str], NDArray[np.int64]]]:
    """Whole numbers are labels as they are; anything else is a class name, numbered as in `data.class_names`, or else
    in sorted order of those in training.
    """
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(train_labels.dtype):
        return None, _whole_numbers
    names = given or tuple(sorted({str(label) for label in train_labels}))
    number = {name: c for c, name in enumerate(names)}

    def encode(labels: Any, file: str) -> NDArray[np.int64]:
        unknown = sorted({str(label) for label in labels} - set(number))
        if unknown:
            source = "not in data.class_names" if given else "without a training image"
            raise DataError(f"{file}: {len(unknown)} classes are {source}:\n{some_of(unknown)}")
        return np.asarray([number[str(label)] for label in labels], dtype=np.int64)

    return names, encode


def _whole_numbers(labels: Any, file: str) -> NDArray[np.int64]:
    from pandas.api.types import is_numeric_dtype

    if not is_numeric_dtype(labels.dtype):
        raise DataError(f"{file}: labels are text, but those of the training split are numbers")
    values = np.asarray(labels, dtype=np.float64)
    wrong = np.flatnonzero((values != np.floor(values)) | (abs(values) > 1e9))
    if len(wrong):
        raise DataError(f"{file}, row {wrong[0] + 1}: label {values[wrong[0]]:g} is no whole number of a class")
    return values.astype(np.int64)
