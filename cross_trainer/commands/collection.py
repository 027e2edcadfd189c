"""Measure a model on a judged collection, beside the first stage whose candidates it re-ranks.

    evaluate_collection("output/rerank", "data/scifact", split="test", candidates="bm25", run="reranked.trec")

`cross-trainer evaluate --collection` is this function, so the messages name the options of the command line.

Shapes: G queries with candidates, D documents of the longest list, Q judged queries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from cross_trainer.commands.evaluate import write_metrics
from cross_trainer.commands.processes import are_several, is_main, on_main
from cross_trainer.commands.score import load_encoder, show_progress
from cross_trainer.data.tables import Name, check_output, replacing, taking
from cross_trainer.data.trec import write_run
from cross_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from cross_trainer.data.collections import Collection
    from cross_trainer.metrics.rankings import Comparison
    from cross_trainer.metrics.report import Floats
    from cross_trainer.metrics.runs import RunMetrics
    from cross_trainer.scoring.cross_encoder import CrossEncoder


def evaluate_collection(
    model: str,
    collection: str,
    split: str | None = None,
    *,
    candidates: str = "bm25",
    top_k: int = 100,
    metrics: str | None = None,
    run: Name | None = None,
    confidence: float | None = None,
    output: Name | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    **options: Any,
) -> None:
    """Print the metrics of a model and of the first stage on a collection, and how they differ.

    Args:
        model: A saved classifier with one label: a name on the Hub or a folder.
        collection: As the source of `Collection`.
        split: Its split. Default: "test", or the only one.
        candidates: A TREC run, "bm25", the name of a SentenceTransformer, or "bm25+" and such a name.
        top_k: Candidates of a query at most.
        metrics: Names of ir_measures, separated by spaces. Default: those of `Collection`.
        run: A TREC run to write the model's scores to.
        confidence: The level of the intervals of the differences, and of those of the metrics in `output`; 0.95 for the
            former if it isn't given.
        output: A JSON file for the metrics.
        overwrite: Replace `output` and `run`.
        batch_size: Pairs that are scored together at most.
        options: Options of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model or the collection isn't there, or a file exists.
        DataError: The collection can't be read; the message names the line.
    """
    from cross_trainer.data.collections import Collection

    for path in (run, output):
        if path is not None:
            on_main(functools.partial(check_output, path, overwrite))
    judged = Collection(collection, split, candidates=candidates, top_k=top_k, metrics=metrics)
    judged.first_stage = on_main(lambda: judged.first_stage)
    encoder = load_encoder(model, **options)
    if encoder.num_labels != 1:
        raise ConfigurationError(f"{model} has {encoder.num_labels} labels, so there is no one score to rank by.")
    found, metric = rerank(encoder, judged, confidence, batch_size)
    if not is_main():
        return
    if run is not None:
        with replacing(run) as path:
            write_run(path, found)
    values, first = metric.per_query(found), metric.per_query(judged.first_stage)
    differences = _compare(values, first, confidence or 0.95)
    _print(judged, values, first, differences, confidence or 0.95)
    if output is not None:
        write_metrics(output, _as_json(metric, values, first, differences))


def _check_outputs(paths: list[Name], overwrite: bool) -> None:
    for path in paths:
        check_output(path, overwrite)


def rerank(
    encoder: CrossEncoder, collection: Collection, confidence: float | None = None, batch_size: int = 64
) -> tuple[dict[str, dict[str, float]], RunMetrics]:
    """Score a collection's candidates, each process its share.

    Args:
        encoder: The model.
        collection: The collection.
        confidence: The level of bootstrap intervals. Default: none.
        batch_size: Pairs that are scored together at most.

    Returns:
        The run, whose scores are logits where a higher one never has a lower score, and what measures it.
    """
    from cross_trainer.scoring.engine import keeps_order
    from cross_trainer.training.plan import collection_metrics

    metric = collection_metrics(collection, confidence)
    activation: Any = "logits" if keeps_order(encoder.activation_fn) else None
    windows = encoder.score_windows(
        collection.pairs, batch_size=batch_size, activation=activation, distributed=are_several()
    )
    take = taking(show_progress(windows, sum(map(len, collection.candidates.values()))))
    scores = {query: take(len(names))[:, 0].tolist() for query, names in collection.candidates.items()}
    return metric.ranked(scores), metric


def _compare(values: Mapping[str, Floats], first: Mapping[str, Floats], level: float) -> dict[str, Comparison]:
    from cross_trainer.metrics.rankings import compare

    return {key: compare(values[key], first[key], level) for key in values}


def _print(
    judged: Collection,
    values: Mapping[str, Floats],
    first: Mapping[str, Floats],
    differences: Mapping[str, Comparison],
    level: float,
) -> None:
    typer.echo(
        f"{'metric':<20} {'first stage':>11} {'model':>9} {'difference':>11}   {100 * level:g} % interval       p"
    )
    for key, found in differences.items():
        interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
        means = f"{first[key].mean():>11.4f} {values[key].mean():>9.4f} {found.difference:>+11.4f}"
        typer.echo(f"{key:<20} {means}   {interval}  {found.p_value:.4f}")
    ranked = sum(map(len, judged.candidates.values()))
    typer.echo(f"{len(judged.qrels)} queries, {ranked} candidates, {judged.missed} relevant documents not among them")


def _as_json(
    metric: RunMetrics, values: Mapping[str, Floats], first: Mapping[str, Floats], differences: Mapping[str, Comparison]
) -> dict[str, Any]:
    return {
        **metric.report(values),
        "first_stage": {key: float(value.mean()) for key, value in first.items()},
        "difference": {
            key: {"mean": found.difference, "low": found.low, "high": found.high, "p_value": found.p_value}
            for key, found in differences.items()
        },
    }
