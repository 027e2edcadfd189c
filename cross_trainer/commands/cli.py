"""The command line: `cross-trainer train | evaluate | score | rank | mine`, each explained by its `--help`.

    cross-trainer score pairs.csv -o scored.parquet --model output/quora
    cross-trainer train quora.yaml --num_train_epochs 2
    accelerate launch -m cross_trainer.commands.cli train quora.yaml

What was asked for and can't be done is one line on stderr and exit code 2; Ctrl-C is 130, with a line that says how to go on; anything
unexpected keeps its traceback. torch and its friends are imported when a command needs them, so help is there at once. What a command
does is a function to call from Python too: `score_file`, `rank_files`, `train_model`, `measure_model`, `mine_hard_negatives`.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import cross_trainer
from cross_trainer.commands.arguments import name_columns, parse_arguments, read_config
from cross_trainer.commands.evaluate import measure_model
from cross_trainer.commands.rank import choose_text, rank_files
from cross_trainer.commands.score import WINDOW, load_model, score_file
from cross_trainer.commands.train import GENERAL_DEFAULTS, TrainArguments, check_columns, train_model
from cross_trainer.data.splits import load_split
from cross_trainer.data.tables import Format, check_output, open_writer, replacing
from cross_trainer.errors import ConfigurationError, CrossTrainerError

logger = logging.getLogger("cross_trainer.commands.cli")  # also where this is the process's main module

HOW_TO_GO_ON = {
    "score": "Run the same command again: it goes on with the first window of pairs that isn't scored.",
    "train": "Go on from the last checkpoint with --resume_from_checkpoint true.",
}


class _Command(TyperCommand):
    """A command that ends in one line and an exit code where that says it all."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (CrossTrainerError, OSError) as error:
            if isinstance(error, OSError) and error.filename is None:
                raise
            text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            typer.echo(f"error: {' '.join(text.split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            how = HOW_TO_GO_ON.get(str(ctx.info_name), "Run the same command again.")
            typer.echo(f"\ninterrupted. {how}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


def _option(
    name: str, kind: Any, default: Any, text: str, flag: str | None = None, **settings: Any
) -> inspect.Parameter:
    """An option that a command passes on by its name; `settings` are typer's."""
    flag = f"--{name.replace('_', '-')}" if flag is None else flag
    annotation = Annotated[kind, typer.Option(flag, help=text, **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _command(*options: inspect.Parameter, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command, with `options` in the place of its last parameter and an example below its help."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
        function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return app.command(cls=_Command, epilog=f"\b\nExample:\n  {example}")(function)

    return add


MODEL = "A saved classifier: a folder, or a name on the Hub"
LABELLED = "Hub id, folder of splits, or file (csv, tsv, jsonl, parquet)"
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)]
Model = Annotated[str, typer.Option("--model", "-m", help=f"{MODEL}.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, whole or half done.")]
Split = Annotated[str, typer.Option(help="A file without a column `split` is taken whole.")]
DatasetConfig = Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")]
Texts = Annotated[tuple[str, str] | None, typer.Option(metavar="FIRST SECOND", help="Default: the first two of text.")]
LabelColumn = Annotated[str | None, typer.Option(help="The label's column, beside --text-columns.")]

MODEL_OPTIONS = [
    _option("max_length", int | None, None, "Tokens of a pair at most. Default: the model's."),
    _option("max_tokens", int | None, None, "Of a batch, padding included. Default: by device."),
    _option("device", str | None, None, "cpu, cuda, cuda:1, mps. Default: a GPU if there is one."),
    _option("dtype", str | None, None, "float32, bfloat16 or float16. Default: as saved."),
    _option("quantize", str | None, None, "int8: faster on CPUs, and scores change a little."),
    _option("revision", str | None, None, "Branch, tag or commit of a model on the Hub."),
    _option("trust_remote_code", bool, False, "Run code that lies beside the model."),
]
WINDOW_OPTION = _option("window", int, WINDOW, "Pairs that are sorted by length and scored together.", min=1)
MINING_OPTIONS = [
    _option("num_negatives", int, 3, "Negatives of a query at most."),
    _option("range_min", int, 0, "The first rank to take, from 0."),
    _option("range_max", int | None, None, "The rank to stop before. Default: 100 further."),
    _option("absolute_margin", float | None, None, "Drop what scores above the positive's score minus this."),
    _option("relative_margin", float | None, None, "Drop what scores above the positive's minus this share of it."),
    _option("margin_to", str, "lowest", "Of several positives, the lowest or highest score counts."),
    _option("min_score", float | None, None, "Drop what scores below."),
    _option("max_score", float | None, None, "Drop what scores above."),
    _option("sampling_strategy", str, "top", "top takes the hardest, random draws."),
    _option("output_format", str, "triplet", "triplet, n-tuple, labeled-pair or labeled-list."),
    _option("seed", int, 0, "For random sampling."),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cross-trainer {cross_trainer.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[  # noqa: ARG001  # acted upon by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and use cross-encoders: models that read two texts at once and score them."""
    if not sys.stderr.isatty():  # where nobody watches, no library draws bars while it loads and saves
        for library in ("HUB", "DATASETS"):
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def _log_to_stderr() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cross_trainer").setLevel(logging.INFO)
    for name in (
        "cross_trainer.data.columns",
        "cross_trainer.training.trainer",
        "bm25s",
    ):  # what commands say in their own words
        logging.getLogger(name).setLevel(logging.WARNING)


@_command(
    _option("score_column", str, "score", "The column to add; NAME_<label> for several labels."),
    _option("symmetric", bool, False, "Average the scores of (a, b) and (b, a)."),
    _option("logits", bool, False, "Raw logits, without the model's activation."),
    WINDOW_OPTION,
    *MODEL_OPTIONS,
    example="cross-trainer score pairs.csv -o scored.parquet --model output/quora --text-columns question1 question2",
)
def score(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A table: csv, tsv, jsonl (also .gz) or parquet.")],
    output: Output,
    model: Model,
    text_columns: Texts = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Score pairs of texts in a file of any size.

    All columns of INPUT are kept and `score` is added, or `score_<label>` for each label of a model with several. Input and output may
    be of different formats. Every row is checked before the first is scored.

    Killed at any moment, the same command goes on where it stopped, and ends in the same bytes as if it had never been. What is done lies
    in the folder OUTPUT.partial until OUTPUT is written.
    """
    _log_to_stderr()
    score_file(source, output, model, text_columns=text_columns, overwrite=overwrite, **options)


@_command(
    _option("candidates", Path | None, None, "A TREC run, or a table of query and document ids. Default: everything."),
    _option("top_k", int | None, None, "Documents to write for each query. Default: all.", min=1),
    _option("form", str | None, None, "trec or jsonl. Default: by OUTPUT's name.", "--format"),
    _option("query_id", str | None, None, "Column in QUERIES. Default: id, _id, qid, ..."),
    _option("query_text", str | None, None, "Likewise. Default: text, or the first of text."),
    _option("document_id", str | None, None, "Column in CORPUS. Default: id, _id, docid, ..."),
    _option("document_text", str | None, None, "Likewise. Default: text, or the first of text."),
    WINDOW_OPTION,
    *MODEL_OPTIONS,
    example="cross-trainer rank queries.tsv corpus.jsonl.gz -o run.trec --model output/rerank --candidates bm25.trec",
)
def rank(
    queries: Annotated[Path, typer.Argument(help="A table with the columns of an id and a text.")],
    corpus: Annotated[Path, typer.Argument(help="A table of documents, likewise.")],
    output: Output,
    model: Model,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Rank documents for queries, as a TREC run or as jsonl.

    A line of the jsonl is {"query_id": ..., "ranking": [{"id": ..., "score": ...}, ...]}, best first, equal scores by id. Pairs of
    neighbouring queries are scored together. Ids are in memory, and so are the candidates; the texts are not.
    """
    _log_to_stderr()
    rank_files(queries, corpus, output, model, overwrite=overwrite, **options)


TRAIN_HELP = """Train a cross-encoder on pairs, on lists of documents or on positives and negatives.
Arguments stand in a YAML file of lines `name: value`, or on the command line, which overrides the file.
Columns, loss and metrics follow from the data where they aren't given.

Example:
  cross-trainer train --dataset pairs.csv --model distilroberta-base --output_dir output/pairs
  cross-trainer train quora.yaml --num_train_epochs 2 --max_tokens 4096
  accelerate launch -m cross_trainer.commands.cli train quora.yaml"""


class _TrainHelp(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each argument, and the description as it is written."""


@app.command(
    cls=_Command,
    # All arguments are the parser's of transformers, --help among them.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
)
def train(ctx: typer.Context) -> None:
    """Train a model on a data set, by a YAML file, by flags or both."""
    argv = list(ctx.args)
    if argv and not argv[0].startswith("-"):
        argv = [*read_config(argv[0], TrainArguments), *argv[1:]]
    arguments, training_arguments = parse_arguments(
        TrainArguments,
        GENERAL_DEFAULTS,
        argv,
        prog="cross-trainer train",
        usage="cross-trainer train [CONFIG.yaml] [--name value ...]",
        description=TRAIN_HELP,
        formatter_class=_TrainHelp,
    )
    train_model(arguments, training_arguments)


@_command(
    *(option for option in MODEL_OPTIONS if option.name in {"max_length", "revision", "trust_remote_code"}),
    example="cross-trainer evaluate output/quora questions.tsv --split test --confidence 0.95 -o metrics.json",
)
def evaluate(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    dataset: Annotated[str, typer.Argument(help=f"{LABELLED}.")],
    split: Split = "validation",
    dataset_config: DatasetConfig = None,
    text_columns: Texts = None,
    label_column: LabelColumn = None,
    confidence: Annotated[float | None, typer.Option(help="Level of bootstrap intervals, 0.95 say.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the metrics here too, as JSON.")] = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that are scored together.")] = 64,
    **options: Any,
) -> None:
    """Measure a model on labelled data; the metrics follow from the labels.

    0 and 1: average precision, accuracy, F1. Numbers: correlations. Classes: accuracy, F1. Lists of documents: nDCG, MRR, MAP.
    """
    _log_to_stderr()
    if output is not None:
        check_output(output, overwrite)
    columns = name_columns(text_columns, label_column)
    rows = load_split(dataset, split, dataset_config)
    check_columns(dataset, rows, columns)
    encoder = load_model(model, device="cpu", **options)  # the trainer takes it to where it computes
    values = measure_model(encoder, rows, columns, confidence, batch_size)
    _print_metrics(values, len(rows), confidence)
    if output is not None:
        with replacing(output) as path:
            defined = {name: None if math.isnan(value) else value for name, value in values.items()}  # NaN is no JSON
            path.write_text(json.dumps(defined, indent=2) + "\n", encoding="utf-8")


def _print_metrics(values: Mapping[str, float], rows: int, confidence: float | None) -> None:
    bounds = ("_low", "_high")
    heading = "" if confidence is None else f"   {100 * confidence:g} % interval"
    typer.echo(f"{'metric':<28} {'value':>9}{heading}")
    for name, value in values.items():
        if name.endswith(bounds) and name.rsplit("_", 1)[0] in values:
            continue
        interval = [values[name + bound] for bound in bounds if name + bound in values]
        typer.echo(f"{name:<28} {value:>9.4f}" + (f"   [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""))
    typer.echo(f"{'rows':<28} {rows:>9}")


@_command(
    *MINING_OPTIONS,
    *MODEL_OPTIONS,
    example="cross-trainer mine answers.jsonl -o mined.csv --corpus passages.jsonl --model output/rerank --relative-margin 0.05",
)
def mine(
    dataset: Annotated[str, typer.Argument(help=f"{LABELLED}, of a query and a positive a row.")],
    output: Output,
    corpus: Annotated[
        Path | None, typer.Option(help="A table of documents to look in. Default: the documents of DATASET.")
    ] = None,
    corpus_column: Annotated[str | None, typer.Option(help="Its text. Default: text, or the first of text.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A saved classifier that scores candidates.")
    ] = None,
    split: Split = "train",
    dataset_config: DatasetConfig = None,
    text_columns: Texts = None,
    label_column: LabelColumn = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Find hard negatives for queries: documents that BM25 ranks high, and that don't answer.

    With a model, candidates that score like a positive can be dropped, as they probably are one that nobody labelled.
    """
    from cross_trainer.scoring.mining import mine_hard_negatives

    _log_to_stderr()
    form = Format.of(output)
    if form.name == "tsv":
        raise ConfigurationError(f"{output}: a tsv can't hold every text. Name a .csv, .jsonl or .parquet.")
    check_output(output, overwrite)
    columns = name_columns(text_columns, label_column)
    rows = load_split(dataset, split, dataset_config)
    documents = None if corpus is None else _load_corpus(corpus, corpus_column)
    mining = {option.name: options.pop(option.name) for option in MINING_OPTIONS}
    scorer = None if model is None else functools.partial(load_model(model, **options).predict, show_progress_bar=False)
    mined = mine_hard_negatives(rows, documents, scorer=scorer, columns=columns, **mining).dataset
    with replacing(output) as path, open_writer(path, form, mined.column_names, mined.features.arrow_schema) as write:
        for row in mined:
            write(row)
    logger.info("Wrote %s: %d rows.", output, len(mined))


def _load_corpus(path: Path, column: str | None) -> Any:
    """A table's column of text, on disk."""
    rows = load_split(str(path), "train")
    column = choose_text(path, next(iter(rows), {}), column, "--corpus-column")
    logger.info("%s: %d documents from %r", path, len(rows), column)
    return rows[column]


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="cross-trainer")


if __name__ == "__main__":
    main()
