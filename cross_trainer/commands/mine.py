"""Find hard negatives for the queries of a data set, and write them to a table.

    mine_file("answers.jsonl", "mined.csv", corpus="passages.jsonl", model="output/rerank", mining={"num_negatives": 5})

`cross-trainer mine` calls this function, so its messages name the options of the command line.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cross_trainer.commands.arguments import name_columns
from cross_trainer.commands.processes import are_several, is_main, on_main
from cross_trainer.commands.rank import choose_text
from cross_trainer.commands.score import load_encoder
from cross_trainer.data.splits import load_split, load_table
from cross_trainer.data.tables import Format, Name, check_output, open_writer, read_rows, replacing
from cross_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from datasets import Column

logger = logging.getLogger(__name__)


def mine_file(
    dataset: str,
    output: Name,
    *,
    corpus: Name | None = None,
    corpus_column: str | None = None,
    model: str | None = None,
    split: str = "train",
    dataset_config: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    overwrite: bool = False,
    mining: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write the rows of a data set with hard negatives.

    Args:
        dataset: A Hub id, a folder of splits or a file, with a query and a positive in each row.
        output: The csv, jsonl or parquet file to write.
        corpus: A table of documents to search. Default: the documents of `dataset`.
        corpus_column: Its column of texts. Default: `text`, or the first of text.
        model: A saved classifier that scores the candidates, as a name on the Hub or a folder. Default: none.
        split: The split of `dataset`. A file without a column `split` is read whole.
        dataset_config: The configuration of a data set on the Hub.
        text_columns: The columns of query and positive. Default: by their names and types.
        label_column: The column of the label.
        overwrite: Replace `output`.
        mining: Options of `mine_hard_negatives`.
        options: Options of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model or the data set isn't there, options contradict each other, or `output` exists.
        DataError: A row can't be used; the message names its line.
    """
    from cross_trainer.scoring.mining import mine_hard_negatives

    form = Format.of(output)
    if form.name == "tsv":
        raise ConfigurationError(f"{output}: a tsv can't hold every text. Name a .csv, .jsonl or .parquet file.")
    on_main(lambda: check_output(output, overwrite))
    if model is None and not is_main():
        return  # nothing to share
    columns = name_columns(text_columns, label_column)
    rows = load_split(dataset, split, dataset_config, columns)
    documents = None if corpus is None else _load_corpus(corpus, corpus_column)
    scorer = None if model is None else load_encoder(model, **options).predict
    if scorer is not None and are_several():
        scorer = functools.partial(scorer, distributed=True)
    mined = mine_hard_negatives(rows, documents, scorer=scorer, columns=columns, **(mining or {})).dataset
    if not is_main():
        return
    with replacing(output) as path, open_writer(path, form, mined.column_names, mined.features.arrow_schema) as write:
        for row in mined:
            write(row)
    logger.info("Wrote %s: %d rows.", output, len(mined))


def _load_corpus(path: Name, asked: str | None) -> Column:
    """The column of a table's texts, on disk."""
    column = choose_text(path, next(read_rows(path), {}), asked, "--corpus-column")
    rows = load_table(path, [column])
    logger.info("%s: %d documents from %r", Path(path), len(rows), column)
    return rows[column]
