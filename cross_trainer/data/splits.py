"""Data sets from the Hub, a folder or a file, with the splits `train`, `validation` and `test`."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cross_trainer.data.tables import FORMATS, table_format
from cross_trainer.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

LOADERS = {"csv": "csv", "tsv": "csv", "jsonl": "json", "parquet": "parquet"}  # of the package datasets
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
HELD_OUT = 0.1  # share of a single file's rows that become its validation split


def load_splits(source: str, config: str | None = None, seed: int = 0) -> DatasetDict:
    """Load a data set with at least the splits "train" and "validation".

    Args:
        source: A folder with one file a split (`train.csv`, `validation.csv` or `dev.csv`, `test.csv`), a file, or the id of a data
            set on the Hub. Files are csv, tsv, jsonl or parquet, also compressed (`.gz`). A file's rows go by its column `split`;
            without one a tenth of them, drawn by `seed`, are held out for validation. An empty field is an empty text.
        config: The configuration of a data set on the Hub.
        seed: For drawing the held-out rows.

    Raises:
        ConfigurationError: There is no such file or folder and the Hub can't be reached or doesn't know it.
        DataError: No file or split of training data is found.
    """
    splits = _load(source, config)
    if "train" not in splits:
        raise DataError(
            f"{source!r} has the splits {list(splits)}, but no 'train'. Name the file of training data train.csv, say."
        )
    if "validation" not in splits:
        splits = _hold_out(splits, seed)
    return splits


def load_split(source: str, split: str, config: str | None = None) -> Dataset:
    """Load one split of a data set; of a file without a column `split` all rows.

    Args:
        source: As for `load_splits`; no other split has to be there.
        split: Its name, or one of those that `SPLITS` takes for it.
        config: The configuration of a data set on the Hub.

    Raises:
        ConfigurationError: There is no such file or folder and the Hub can't be reached or doesn't know it.
        DataError: There is no such split; the message names those that are there.
    """
    path = Path(source)
    if path.is_file() and "split" not in (rows := _read(path)).column_names:
        return rows
    splits = _load(source, config)
    name = split if split in splits else SPLITS.get(split, split)
    if name not in splits:
        raise DataError(f"{source!r} has the splits {list(splits)}, but no {split!r}. Name one of those with --split.")
    return splits[name]


def _load(source: str, config: str | None) -> DatasetDict:
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    return _load_file(path) if path.is_file() else _load_from_hub(source, config)


def _load_folder(folder: Path) -> DatasetDict:
    from datasets import DatasetDict

    found = {
        SPLITS[_stem(path)]: path for path in sorted(folder.iterdir()) if table_format(path) and _stem(path) in SPLITS
    }
    if not found:
        raise DataError(
            f"No file of a split in {str(folder)!r}: expected train, validation and test as .csv, .tsv, .jsonl or .parquet."
        )
    return DatasetDict({split: _read(path) for split, path in found.items()})


def _load_file(path: Path) -> DatasetDict:
    from datasets import DatasetDict

    rows = _read(path)
    if "split" not in rows.column_names:
        return DatasetDict({"train": rows})
    splits: dict[str, list[int]] = {}
    for index, name in enumerate(rows["split"]):
        if name not in SPLITS:
            raise DataError(f"Column 'split', row {index}: {name!r} is no split. Expected one of {list(SPLITS)}.")
        splits.setdefault(SPLITS[name], []).append(index)
    rows = rows.remove_columns("split")
    return DatasetDict({split: rows.select(indices) for split, indices in splits.items()})


def _load_from_hub(name: str, config: str | None) -> DatasetDict:
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        loaded: DatasetDict = load_dataset(name, config)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ConfigurationError(
            f"{name!r} is neither a file nor a folder, and the Hub can't be reached or doesn't have it ({type(error).__name__}). "
            "Name a folder or a file; the recipes also have --demo, which needs neither."
        ) from error
    return loaded


def _hold_out(splits: DatasetDict, seed: int) -> DatasetDict:
    from datasets import DatasetDict

    parts = splits["train"].train_test_split(test_size=HELD_OUT, seed=seed)
    logger.info("No validation split: %d of %d rows are held out.", len(parts["test"]), len(splits["train"]))
    rest = {name: split for name, split in splits.items() if name != "train"}
    return DatasetDict({"train": parts["train"], "validation": parts["test"], **rest})


def _read(path: Path) -> Any:
    from datasets import load_dataset

    name = table_format(path)
    if name is None:
        raise DataError(
            f"{path} is no table: expected a name that ends in {', '.join(FORMATS)}, or one of these and .gz."
        )
    options: dict[str, Any] = {}
    if LOADERS[name] == "csv":
        # A text like "NA" or "null" is a text.
        options = {"keep_default_na": False}
    if name == "tsv":
        options.update(sep="\t", quoting=csv.QUOTE_NONE)
    return load_dataset(LOADERS[name], data_files=str(path), split="train", **options)


def _stem(path: Path) -> str:
    return path.name.split(".")[0].lower()
