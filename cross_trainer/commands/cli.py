"""The command line: `cross-trainer train | evaluate | report | calibrate | score | rank | mine | export | template`.

    cross-trainer score pairs.csv -o scored.parquet --model output/quora
    cross-trainer train quora.yaml --num_train_epochs 2
    accelerate launch -m cross_trainer train quora.yaml
    torchrun --nproc_per_node 2 -m cross_trainer score pairs.csv -o scored.parquet --model output/quora

This file declares the commands and their options, which may be written with dashes or underscores. What a command does
is also a function to call from Python: `score_file`, `rank_files`, `train_model`, `evaluate_dataset`,
`report_dataset`, `calibrate_model`, `mine_file`, `export_folder`.

A request that can't be met ends with one line on stderr and exit code 2, and Ctrl-C with exit code 130 and a line that
says how to continue. Unexpected errors keep their traceback. torch and other large packages are imported only when a
command needs them, so that help appears at once.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import cross_trainer
from cross_trainer.commands.arguments import parse_arguments, read_config
from cross_trainer.commands.calibrate import calibrate_model
from cross_trainer.commands.collection import evaluate_collection
from cross_trainer.commands.evaluate import evaluate_dataset
from cross_trainer.commands.export import export_folder
from cross_trainer.commands.mine import mine_file
from cross_trainer.commands.processes import is_main
from cross_trainer.commands.rank import rank_files
from cross_trainer.commands.report import report_dataset
from cross_trainer.commands.score import WINDOW, score_file
from cross_trainer.commands.template import show_template
from cross_trainer.commands.train import GENERAL_DEFAULTS, TrainArguments, train_model
from cross_trainer.errors import ConfigurationError, CrossTrainerError, DiskFullError

HOW_TO_GO_ON = {
    **dict.fromkeys(
        ("score", "rank"), "Run the same command again: it continues with the first window of pairs that isn't scored."
    ),
    "train": "Continue from the last checkpoint with --resume_from_checkpoint true.",
}


class _Command(TyperCommand):
    """A command that ends with one line and an exit code if that says everything."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (CrossTrainerError, OSError) as error:
            if isinstance(error, DiskFullError):
                text = f"{error} {HOW_TO_GO_ON.get(str(ctx.info_name), '')}"
            elif isinstance(error, CrossTrainerError):
                text = str(error)
            elif error.filename is None:
                raise
            else:
                text = f"{error.filename}: {error.strerror}"
            if is_main():
                typer.echo(f"error: {' '.join(text.split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            how = HOW_TO_GO_ON.get(str(ctx.info_name), "Run the same command again.")
            typer.echo(f"\ninterrupted. {how}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)


def _option(
    name: str, kind: Any, default: Any, text: str, flag: str | None = None, **settings: Any
) -> inspect.Parameter:
    """An option that a command passes on by its name; `settings` are typer's."""
    flag = f"--{name.replace('_', '-')}" if flag is None else flag
    annotation = Annotated[kind, typer.Option(flag, help=text, **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _command(*options: inspect.Parameter, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command, with `options` instead of its last parameter and an example below its help."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
        function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return app.command(cls=_Command, epilog=f"\b\nExample:\n  {example}")(function)

    return add


MODEL = "A saved classifier: a folder, or a name on the Hub"
LABELLED = "Hub id, folder of splits, or file (csv, tsv, jsonl, parquet)"
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)]
Model = Annotated[str, typer.Option("--model", "-m", help=f"{MODEL}.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output, whether complete or half done.")]
Split = Annotated[str, typer.Option(help="The split to read. A file without a column `split` is read whole.")]
DatasetConfig = Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")]
Texts = Annotated[tuple[str, str] | None, typer.Option(metavar="FIRST SECOND", help="Default: the first two of text.")]
LabelColumn = Annotated[str | None, typer.Option(help="The label's column. Needs --text-columns too.")]

MODEL_OPTIONS = [
    _option("max_length", int | None, None, "Tokens of a pair at most. Default: the model's."),
    _option("max_query_length", int | None, None, "Tokens of the first text at most. Default: the model's."),
    _option("template", str | None, None, "The text of a pair, or the name of one. Default: the model's."),
    _option("instruction", str | None, None, "The instruction in the template. Default: the model's."),
    _option("tokens", list[str] | None, None, "What a causal language model answers for a pair, and again against it."),
    _option("max_tokens", int | None, None, "Tokens of a batch, with padding. Default: depends on the device."),
    _option("device", str | None, None, "cpu, cuda, cuda:1, mps. Default: a GPU if there is one."),
    _option("dtype", str | None, None, "float32, bfloat16, float16; auto: a fast one of two. Default: as saved."),
    _option("quantize", str | None, None, "int8: faster on CPUs, with slightly different scores."),
    _option("backend", str, "torch", "onnx or openvino: score with what `export` has written, on the CPU."),
    _option("file_name", str | None, None, "Of several exported files, the one to score with."),
    _option("revision", str | None, None, "Branch, tag or commit of a model on the Hub."),
    _option("trust_remote_code", bool, False, "Run Python code from the model's folder or repository."),
]
WINDOW_OPTION = _option("window", int, WINDOW, "Pairs to sort by length and score together.", min=1)
MINING_OPTIONS = [
    _option("num_negatives", int, 3, "Negatives per query at most."),
    _option("range_min", int, 0, "The first rank to take, counted from 0."),
    _option("range_max", int | None, None, "The rank to stop before. Default: 100 ranks further."),
    _option("absolute_margin", float | None, None, "Drop candidates above the positive's score minus this."),
    _option(
        "relative_margin", float | None, None, "Drop candidates above the positive's score minus this share of it."
    ),
    _option("margin_to", str, "lowest", "The score that counts of several positives: lowest or highest."),
    _option("min_score", float | None, None, "Drop candidates that score lower."),
    _option("max_score", float | None, None, "Drop candidates that score higher."),
    _option("sampling_strategy", str, "top", "top takes the hardest, random draws."),
    _option("output_format", str, "triplet", "triplet, n-tuple, labeled-pair or labeled-list."),
    _option("output_scores", bool, False, "Write the model's logits as labels, for a student to learn."),
    _option("retriever", str, "bm25", "bm25, the name of a SentenceTransformer, or bm25+NAME for both."),
    _option("seed", int, 0, "Seed of random sampling."),
]
COLLECTION_OPTIONS = [
    _option("candidates", str, "bm25", "What is re-ranked: a TREC run, bm25, a SentenceTransformer, or bm25+NAME."),
    _option("top_k", int, 100, "Candidates of a query at most.", min=1),
    _option("metrics", str | None, None, "Names of ir_measures. Default: nDCG@10 RR@10 AP R@10 R@100."),
    _option("run", Path | None, None, "A TREC run to write the model's scores to."),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cross-trainer {cross_trainer.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and use cross-encoders: models that read two texts at once and score them."""
    if not sys.stderr.isatty():  # progress bars of other libraries would only fill a log
        for library in ("HUB", "DATASETS"):
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def _log_to_stderr() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cross_trainer").setLevel(logging.INFO if is_main() else logging.ERROR)
    logging.getLogger("cross_trainer.data.columns").setLevel(logging.WARNING)  # commands say this in their own words


@_command(
    _option("score_column", str, "score", "The column to add; NAME_<label> for each of several labels."),
    _option("symmetric", bool, False, "Average the scores of (a, b) and (b, a)."),
    _option("logits", bool, False, "Write raw logits, without the model's activation."),
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

    All columns of INPUT are kept and `score` is added, or `score_<label>` for each label of a model with several. Input
    and output may have different formats. Every row is checked before the first one is scored.

    If the command is killed, the same command continues where it stopped and writes the same bytes as without the
    interruption. Until OUTPUT is written, finished scores are in the folder OUTPUT.partial.
    """
    _log_to_stderr()
    score_file(source, output, model, text_columns=text_columns, overwrite=overwrite, **options)


@_command(
    _option("candidates", Path | None, None, "A TREC run, or a table of query and document ids. Default: all."),
    _option("top_k", int | None, None, "Documents to write per query. Default: all.", min=1),
    _option("form", str | None, None, "trec or jsonl. Default: according to OUTPUT's name.", "--format"),
    _option("query_id", str | None, None, "Column of ids in QUERIES. Default: id, _id, qid, ..."),
    _option("query_text", str | None, None, "Column of texts in QUERIES. Default: text, or the first of text."),
    _option("document_id", str | None, None, "Column of ids in CORPUS. Default: id, _id, docid, ..."),
    _option("document_text", str | None, None, "Column of texts in CORPUS. Default: text, or the first of text."),
    WINDOW_OPTION,
    *MODEL_OPTIONS,
    example="cross-trainer rank queries.tsv corpus.jsonl.gz -o run.trec --model output/rerank --candidates bm25.trec",
)
def rank(
    queries: Annotated[Path, typer.Argument(help="A table with a column of ids and one of texts.")],
    corpus: Annotated[Path, typer.Argument(help="A table of documents with such columns.")],
    output: Output,
    model: Model,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Rank documents for queries, as a TREC run or as jsonl.

    A line of the jsonl is {"query_id": ..., "ranking": [{"id": ..., "score": ...}, ...]}, best first; equal scores are
    ordered by id. Ids and candidates are kept in memory, texts on disk.
    """
    _log_to_stderr()
    rank_files(queries, corpus, output, model, overwrite=overwrite, **options)


@_command(
    _option("revision", str | None, None, "Branch, tag or commit of a model on the Hub."),
    example="cross-trainer template output/rerank",
)
def template(model: Annotated[str, typer.Argument(help=f"{MODEL}.")], **options: Any) -> None:
    """Show the text in which a model reads a pair, as a server must be given it."""
    _log_to_stderr()
    show_template(model, **options)


TRAIN_HELP = """Train a cross-encoder on pairs, on lists of documents or on positives and negatives.
Write arguments in a YAML file with lines `name: value`, or on the command line, which overrides the file.
Columns, loss and metrics are chosen by the data if you don't give them.

Example:
  cross-trainer train --dataset pairs.csv --model distilroberta-base --output_dir output/pairs
  cross-trainer train quora.yaml --num_train_epochs 2 --max_tokens 4096
  accelerate launch -m cross_trainer train quora.yaml"""


class _TrainHelp(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each argument, and the description as it is written."""


@app.command(
    cls=_Command,
    # The parser of transformers reads all arguments, --help included.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
)
def train(ctx: typer.Context) -> None:
    """Train a model on a data set, with settings from a YAML file, flags or both."""
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
    *COLLECTION_OPTIONS,
    *MODEL_OPTIONS,
    example="""cross-trainer evaluate output/quora questions.tsv --split test --confidence 0.95 -o metrics.json
  cross-trainer evaluate output/rerank --collection data/scifact --candidates bm25 --run reranked.trec""",
)
def evaluate(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    dataset: Annotated[str | None, typer.Argument(help=f"{LABELLED}.", show_default=False)] = None,
    collection: Annotated[
        str | None,
        typer.Option(help="Instead of DATASET: a folder in BEIR's layout, a name of NanoBEIR, or ir_datasets:ID."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to read. Default: validation; of a collection, test or its only one.")
    ] = None,
    dataset_config: DatasetConfig = None,
    text_columns: Texts = None,
    label_column: LabelColumn = None,
    confidence: Annotated[float | None, typer.Option(help="Level of bootstrap intervals, such as 0.95.")] = None,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Add calibration error, Brier score and log loss.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file to write the metrics to.")] = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs that are scored together at most.")] = 64,
    **options: Any,
) -> None:
    """Measure a model on labelled data; the labels decide which metrics.

    0 and 1: average precision, accuracy, F1. Numbers: correlations. Classes: accuracy, F1. Lists of documents: nDCG,
    MRR, MAP. With --collection, the model re-ranks the candidates of a first stage, and both are measured.
    """
    _log_to_stderr()
    own = {option.name: options.pop(option.name) for option in COLLECTION_OPTIONS}
    shared: dict[str, Any] = {
        "confidence": confidence,
        "output": output,
        "overwrite": overwrite,
        "batch_size": batch_size,
        **options,
    }
    of_rows: dict[str, Any] = {"DATASET": dataset, "--dataset-config": dataset_config, "--text-columns": text_columns}
    of_rows |= {"--label-column": label_column, "--calibration": calibration}
    if collection is not None:
        _refuse(of_rows, "say how to read labelled rows, and --collection is none: leave them out.")
        evaluate_collection(model, collection, split, **own, **shared)
        return
    defaults = {option.name: option.default for option in COLLECTION_OPTIONS}
    changed = {f"--{name.replace('_', '-')}": value for name, value in own.items() if value != defaults[name]}
    _refuse(changed, "say how to read a --collection, and none is named.")
    if dataset is None:
        raise ConfigurationError("There is nothing to evaluate on: name a DATASET or a --collection.")
    evaluate_dataset(
        model,
        dataset,
        "validation" if split is None else split,
        dataset_config,
        text_columns=text_columns,
        label_column=label_column,
        calibration=calibration,
        **shared,
    )


def _refuse(options: dict[str, Any], why: str) -> None:
    """Refuse options that are given and would be ignored."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigurationError(f"{', '.join(given)} {why}")


@_command(
    _option("other", str | None, None, "Another saved classifier, to compare with MODEL."),
    _option("worst", int, 100, "How many of each model's worst rows are shown.", min=1),
    _option("confidence", float, 0.95, "Level of the intervals."),
    _option("batch_size", int, 64, "Pairs that are scored together at most.", min=1),
    *MODEL_OPTIONS,
    example="cross-trainer report output/quora questions.tsv -o report.html --other output/baseline",
)
def report(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    dataset: Annotated[str, typer.Argument(help=f"{LABELLED}.")],
    output: Output,
    split: Split = "validation",
    dataset_config: DatasetConfig = None,
    text_columns: Texts = None,
    label_column: LabelColumn = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Write a page to look at: figures, the worst errors, a threshold to move, and two models side by side.

    The page is one HTML file that fetches nothing. It holds the texts of the worst rows.
    """
    _log_to_stderr()
    report_dataset(
        model,
        dataset,
        output,
        split,
        dataset_config,
        text_columns=text_columns,
        label_column=label_column,
        overwrite=overwrite,
        **options,
    )


@_command(
    _option("threshold", str | None, None, "What 0.5 shall be: f1, accuracy, precision>=0.95 or recall>=0.9."),
    _option("relevance_threshold", float | None, None, "Grades from here on count as 1, those below as 0."),
    _option("confidence", float, 0.95, "Level of bootstrap intervals."),
    _option("batch_size", int, 64, "Pairs that are scored together at most.", min=1),
    *MODEL_OPTIONS,
    example="cross-trainer calibrate output/quora held_out.csv -o output/calibrated --threshold 'precision>=0.95'",
)
def calibrate(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")],
    dataset: Annotated[str, typer.Argument(help=f"{LABELLED}, held out from training.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to save to.", show_default=False)],
    split: Split = "validation",
    dataset_config: DatasetConfig = None,
    text_columns: Texts = None,
    label_column: LabelColumn = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that isn't empty.")] = False,
    **options: Any,
) -> None:
    """Let a model's probabilities come true as often as they say, in every tool that reads it.

    The last layer is scaled and shifted, so that the order of scores stays. With --threshold, 0.5 becomes the score to
    decide at instead of a probability. Rows that the model was trained on are refused where its folder knows them.
    """
    _log_to_stderr()
    calibrate_model(
        model,
        dataset,
        output,
        split,
        dataset_config,
        text_columns=text_columns,
        label_column=label_column,
        overwrite=overwrite,
        **options,
    )


@_command(
    *MINING_OPTIONS,
    *MODEL_OPTIONS,
    example="cross-trainer mine answers.jsonl -o mined.csv --corpus passages.jsonl -m output/rerank --max-score 0.9",
)
def mine(
    dataset: Annotated[str, typer.Argument(help=f"{LABELLED}, with a query and a positive per row.")],
    output: Output,
    corpus: Annotated[
        Path | None, typer.Option(help="A table of documents to search. Default: the documents of DATASET.")
    ] = None,
    corpus_column: Annotated[
        str | None, typer.Option(help="Column of texts in CORPUS. Default: text, or the first of text.")
    ] = None,
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
    """Find hard negatives for queries: documents that BM25 ranks high, but that don't answer the query.

    With a model, candidates that score as high as a positive can be dropped, because they probably are positives
    without a label.
    """
    _log_to_stderr()
    mine_file(
        dataset,
        output,
        corpus=corpus,
        corpus_column=corpus_column,
        model=model,
        split=split,
        dataset_config=dataset_config,
        text_columns=text_columns,
        label_column=label_column,
        overwrite=overwrite,
        mining={option.name: options.pop(option.name) for option in MINING_OPTIONS},
        **options,
    )


@_command(
    *(entry for entry in MODEL_OPTIONS if entry.name in {"max_length", "revision", "trust_remote_code"}),
    example="cross-trainer export output/quora --to onnx --precision int8",
)
def export(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help=f"{MODEL}.")],
    to: Annotated[str, typer.Option(help="onnx or openvino.", show_default=False)],
    precision: Annotated[str, typer.Option(help="fp32, int8, or bf16 for openvino.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder to write to, with config and tokenizer.")
    ] = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Write a model as ONNX or OpenVINO, where other tools look for it: FOLDER/onnx or FOLDER/openvino.

    Its scores of pairs of several lengths are compared with torch's, and the largest difference is printed. A float32
    model that scores otherwise is not kept.
    """
    _log_to_stderr()
    export_folder(model, to, precision, output=output, overwrite=overwrite, **options)  # type: ignore[arg-type]


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="cross-trainer")
