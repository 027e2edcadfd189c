"""Judged pairs or lists as a collection in BEIR's layout, for `cross-trainer evaluate --collection`.

    python recipes/to_beir.py pairs.csv collection --split validation

Writes `corpus.jsonl` with all distinct documents, `queries.jsonl`, and `qrels/SPLIT.tsv`. Labels are grades of
relevance, 0, 1, 2 and so on. Every query is searched in all documents, of which those of other queries count as
irrelevant.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo import run

from cross_trainer.data.grouping import read_groups
from cross_trainer.data.splits import load_split
from cross_trainer.data.tables import Format, open_writer
from cross_trainer.errors import DataError


def write_collection(source: str, folder: Path, split: str) -> None:
    """Write a split of a data set as a collection.

    Raises:
        DataError: A label isn't a whole number of 0 or more, or a row can't be read.
    """
    _, found, groups = read_groups(load_split(source, split), None, str, lists=True)
    if not found.whole or found.minimum < 0:
        raise DataError(f"{source}: labels from {found.minimum:g} to {found.maximum:g} are no grades of relevance.")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    ids: dict[str, str] = {}
    with (
        open_writer(folder / "queries.jsonl", Format("jsonl"), ["_id", "text"]) as add_query,
        open_writer(folder / "qrels" / f"{split}.tsv", Format("tsv"), ["query-id", "corpus-id", "score"]) as judge,
    ):
        for number, group in enumerate(groups):
            add_query({"_id": f"q{number}", "text": group.query})
            for text, label in group.documents.values():
                name = ids.setdefault(text, f"d{len(ids)}")
                judge({"query-id": f"q{number}", "corpus-id": name, "score": str(int(label))})
    with open_writer(folder / "corpus.jsonl", Format("jsonl"), ["_id", "title", "text"]) as add_document:
        for text, name in ids.items():
            add_document({"_id": name, "title": "", "text": text})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="A Hub id, a folder of splits or a file, with labels.")
    parser.add_argument("folder", type=Path, help="The folder to write.")
    parser.add_argument("--split", default="test", help="The split. A file without a column `split` is read whole.")
    options = parser.parse_args()
    write_collection(options.source, options.folder, options.split)


if __name__ == "__main__":
    run(main)
