"""Show a model's figures and worst errors on a page to look at, or those of two models side by side.

    report_dataset("output/quora", "questions.tsv", "report.html", other="output/baseline")

`cross-trainer report` is `report_dataset`, so the messages name the options of the command line. The page is one file
that fetches nothing; its numbers come from `metrics/views.py`, its look from `metrics/page.html`.

Shapes: R rows that are shown: pairs, or queries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cross_trainer.commands.arguments import name_columns
from cross_trainer.commands.evaluate import plan_evaluation, score_labelled
from cross_trainer.commands.processes import is_main, on_main
from cross_trainer.commands.score import load_encoder, trained_columns
from cross_trainer.commands.train import check_columns
from cross_trainer.data.columns import Columns, Rows
from cross_trainer.data.splits import load_split
from cross_trainer.data.tables import Name, check_output, replacing
from cross_trainer.errors import ConfigurationError, check_whole

if TYPE_CHECKING:
    from cross_trainer.data.pairs import Pair
    from cross_trainer.metrics.views import View

logger = logging.getLogger(__name__)

TEXT = 600  # characters of a text that is shown
DOCUMENT = 200  # characters of a document in a list
DOCUMENTS = 10  # of a query, those ranked first
LOWER = 3  # relevant documents below them


def report_dataset(
    model: str,
    dataset: str,
    output: Name,
    split: str = "validation",
    dataset_config: str | None = None,
    *,
    other: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    confidence: float = 0.95,
    overwrite: bool = False,
    worst: int = 100,
    batch_size: int = 64,
    **options: Any,
) -> None:
    """Write a page with the figures and the worst errors of a model on a data set.

    Args:
        model: A saved classifier: a name on the Hub or a folder.
        dataset: A Hub id, a folder of splits or a file, with labels.
        output: The HTML file.
        split: The split to measure on. A file without a column `split` is read whole.
        dataset_config: The configuration of a data set on the Hub.
        other: Another saved classifier, to be compared with the first.
        text_columns: The columns of the two texts. Default: by their names and types.
        label_column: The column of the label.
        confidence: The level of the intervals.
        overwrite: Replace `output`.
        worst: How many of the worst rows of each model are shown.
        batch_size: Pairs that are scored together at most.
        options: Options of `CrossEncoder`, such as `device` and `max_length`, for both models; `revision` is the
            first one's.

    Raises:
        ConfigurationError: A model or the data set isn't there, `output` exists, or the models have nothing in common.
        DataError: A row can't be evaluated on; the message names it.
    """
    from cross_trainer.metrics.page import render
    from cross_trainer.metrics.report import check_interval

    on_main(lambda: check_output(output, overwrite))
    check_whole("worst", worst)
    check_interval(confidence, 1)
    columns = name_columns(text_columns, label_column)
    rows = load_split(dataset, split, dataset_config, columns)
    names = [model] if other is None else [model, other]
    for name, given in zip(names, (options, {**options, "revision": None}), strict=False):
        check_columns(dataset, rows, columns, trained_on=trained_columns(name, **given))
    shown, views = look(names, rows, columns, confidence, batch_size, options)
    if not is_main():
        return
    source = Path(dataset).name if Path(dataset).is_file() else f"{dataset}, {split}"
    data = {
        "source": source,
        "confidence": confidence,
        "names": names,
        **page_data(views, rows, shown, confidence, worst),
    }
    with replacing(output) as path:
        path.write_text(render(f"{' and '.join(names)} on {source}", data), encoding="utf-8")
    logger.info("Wrote %s.", output)


def look(
    names: Sequence[str],
    rows: Rows,
    columns: Sequence[str] | None,
    confidence: float,
    batch_size: int,
    options: Mapping[str, Any],
) -> tuple[Columns, list[View]]:
    """Score rows with each of the models.

    Returns:
        What the first model takes the columns for, and what there is to show of each.

    Raises:
        ConfigurationError: The models are measured by different metrics.
        DataError: A row can't be evaluated on; the message names it.
    """
    from cross_trainer.metrics.views import view

    encoders = [load_encoder(names[0], **options)]
    encoders += [load_encoder(name, **{**options, "revision": None}) for name in names[1:]]
    plans = [plan_evaluation(encoder, rows, columns) for encoder in encoders]
    found = [plan.for_dataset(rows) for plan in plans]
    kinds = [type(each.metrics).__name__ for each in found]
    if len(set(kinds)) > 1:
        raise ConfigurationError(
            f"{names[0]} is measured by {kinds[0]} and {names[1]} by {kinds[1]}, since they have "
            f"{encoders[0].num_labels} and {encoders[1].num_labels} outputs. Make a page for each."
        )
    views = []
    for encoder, plan, each in zip(encoders, plans, found, strict=True):
        scored = score_labelled(encoder, rows, plan, batch_size)
        if is_main():
            views.append(view(each.metrics, scored.evaluation, confidence))
    return found[0].columns, views


def page_data(views: Sequence[View], rows: Rows, columns: Columns, confidence: float, worst: int) -> dict[str, Any]:
    """What the page shows of one model or two.

    Args:
        views: What there is to show of each.
        rows: The data set.
        columns: What its columns are for.
        confidence: The level of the intervals of differences.
        worst: How many of the worst rows of each model are shown.
    """
    from cross_trainer.metrics.views import compare_views, draws

    tested = compare_views(views[0], views[1], confidence) if len(views) > 1 else {}
    return {
        "kind": views[0].kind,
        "rows": len(views[0].errors),
        "draws": draws(len(views[0].errors)),
        "metrics": [
            {
                "name": key,
                "values": [[each.metrics.get(name) for name in (key, f"{key}_low", f"{key}_high")] for each in views],
                "test": vars(tested[key].comparison) | {"exchanged": tested[key].exchanged} if key in tested else None,
            }
            for key in views[0].metrics
            if not (key.endswith(("_low", "_high")) and key.rsplit("_", 1)[0] in views[0].metrics)
        ],
        "figures": [each.figures for each in views],
        "worst": _worst(views, rows, columns, worst),
    }


def _worst(views: Sequence[View], rows: Rows, columns: Columns, worst: int) -> dict[str, Any]:
    """The rows that any model is most wrong about, worst of the first model first, as a table."""
    import numpy as np

    first = views[0]
    chosen = np.unique(np.concatenate([np.argsort(-each.errors, kind="stable")[:worst] for each in views]))
    chosen = chosen[np.argsort(-first.errors[chosen], kind="stable")]
    chosen = chosen[first.errors[chosen] >= 0]
    letters = ["", ""] if len(views) == 1 else ["A: ", "B: "]
    own = {
        f"{letter}{name}": value
        for letter, each in zip(letters, views, strict=False)
        for name, value in each.columns.items()
    }
    lists = first.kind == "ranking"
    names = ["row", *([] if lists else ["label"]), *own, columns.query, "documents" if lists else columns.documents[0]]
    table = []
    for row in map(int, chosen):
        place, document = map(int, first.places[row])
        pairs = _pairs(rows[place], columns)
        label = [] if lists else [_label(rows[place], columns, document, first)]
        texts = list(_ranked(views, row, pairs)) if lists else _cut(pairs[document][1], TEXT)
        values = [value(row) for value in own.values()]
        table.append([place, *label, *values, _cut(pairs[document][0], TEXT), texts])
    return {"names": names, "rows": table}


def _pairs(row: Any, columns: Columns) -> list[Pair]:
    from cross_trainer.data.collator import pairs_and_labels

    return pairs_and_labels([row], columns)[0]


def _label(row: Mapping[str, Any], columns: Columns, document: int, view: View) -> Any:
    """A label as people read it: a number, a name, or the names of several."""
    value = row[columns.label or ""]
    if view.kind == "labels":
        names = [each["name"] for each in view.figures["classes"]]
        return ", ".join(name for name, entry in zip(names, value, strict=True) if entry == 1)
    if view.kind == "classes":
        classes = view.figures["classes"]
        return value if isinstance(value, str) else classes[columns.encode(value)]["name"]
    if columns.grouped:
        return float(value[document])
    return float(columns.encode(value))


def _ranked(views: Sequence[View], row: int, pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """The documents of a query that the first model ranks first, and relevant ones further down."""
    ranks = [each.ranks(row) for each in views if each.ranks is not None]
    places = [{entry["document"]: rank for rank, entry in enumerate(each, 1)} for each in ranks]
    lower = [entry for entry in ranks[0][DOCUMENTS:] if entry["grade"] >= 1][:LOWER]
    for entry in ranks[0][:DOCUMENTS] + lower:
        index = entry["document"]
        yield {
            "ranks": [each[index] for each in places],
            "score": entry["score"],
            "grade": entry["grade"],
            "text": _cut(pairs[index][1], DOCUMENT),
        }


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
