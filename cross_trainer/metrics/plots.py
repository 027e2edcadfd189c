"""Pictures of an evaluation and of a training, for those who would rather look than read. They need the extra `plots`.

    for picture in evaluation_pictures("binary", logits, labels, threshold=0.4):
        picture.figure.savefig(f"{picture.name}.png")

P pairs, G groups (queries), D documents of the largest group, C classes. Colours are those of Okabe and Ito (2008),
which people who are colour-blind can tell apart; the ground is white, so that a picture can be read on a dark page too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cross_trainer.metrics.figures import reliability
from cross_trainer.metrics.pairs import _Cuts
from cross_trainer.metrics.rankings import ranking_metrics
from cross_trainer.metrics.report import IGNORED, Floats, activate, divide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Task: TypeAlias = Literal["binary", "numbers", "classes", "labels", "ranking"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
BINS = 10  # of a reliability diagram and of lengths, each with as many rows
MOST_BOXES = 12  # labels side by side
MOST_CLASSES = 20  # of a confusion matrix that can still be read
MOST_POINTS = 2_000  # of a line, which has no more pixels


@dataclass(frozen=True)
class Picture:
    """A figure and what it says.

    Attributes:
        name: Of its file, without an ending.
        caption: What there is to see, also for those who can't see it.
        figure: A figure of matplotlib.
    """

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Shown:
    """An evaluation as its pictures need it; entries without a label are gone, but for rankings.

    Attributes:
        task: See `evaluation_pictures`.
        scores: What the activation makes of the logits: [P], [P, C] or [G, D].
        labels: [P]; [P, C] for several labels at once; [G, D], with -100 where there is no document.
        probabilities: Whether scores are probabilities.
        names: Of the C classes.
        threshold: From which score on a pair counts as positive.
        lengths: Characters of each row.
    """

    task: Task
    scores: Floats
    labels: Floats
    probabilities: bool
    names: tuple[str, ...]
    threshold: float | None
    lengths: NDArray[np.int64] | None


def evaluation_pictures(
    task: Task,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    activation: str = "sigmoid",
    names: Sequence[str] = (),
    threshold: float | None = None,
    lengths: Sequence[int] | None = None,
) -> Iterator[Picture]:
    """The pictures that fit an evaluation; none where a score isn't finite.

        >>> logits, labels = [-2.0, -1.0, 0.5, 2.0], [0, 0, 1, 1]
        >>> [picture.name for picture in evaluation_pictures("binary", logits, labels)]
        ['score_distribution', 'precision_recall', 'reliability', 'confusion']

    Args:
        task: "binary" for labels 0 and 1, "numbers" for others, "classes" for one class of C, "labels" for several of C
            at once, "ranking" for grids.
        logits: [P] or [P, 1]; [P, C] for classes and labels; [G, D] for rankings.
        labels: [P]; [P, C] for labels; [G, D] for rankings, -100 where there is no document.
        activation: What makes scores of logits: "sigmoid", "softmax" or "identity".
        names: Of the C classes or labels.
        threshold: From which score on a pair counts as positive. Default: 0.5 for probabilities.
        lengths: Characters of each row. Without them, errors aren't drawn by length.
    """
    given, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    sizes = None if lengths is None or len(lengths) != len(truth) else np.asarray(lengths, dtype=np.int64)
    if task == "binary" and given.shape == (len(truth), 2) and truth.ndim == 1:  # a two-class model's
        given, activation = given[:, 1] - given[:, 0], "sigmoid"
    if task in {"binary", "numbers"}:
        given = given.reshape(truth.shape)
    if task != "ranking":
        keep = truth != IGNORED if truth.ndim == 1 or task != "labels" else (truth != IGNORED).all(axis=1)
        sizes = sizes[keep] if sizes is not None and keep.ndim == 1 else None
        given, truth = given[keep], truth[keep]
    if len(truth) < 2 or not np.isfinite(given).all():
        return
    scores = (
        _softmax(given)
        if activation == "softmax"
        else activate(given, "identity" if activation == "identity" else "sigmoid")
    )
    chosen = 0.5 if threshold is None and activation != "identity" else threshold
    shown = Shown(task, scores, truth, activation != "identity", tuple(names), chosen, sizes)
    for draw in _DRAWN[task]:
        picture = draw(shown)
        if picture is not None:
            yield picture


def learning_curve(
    history: Sequence[Mapping[str, Any]], metric: str | None = None, best: int | None = None
) -> Picture | None:
    """The loss of training and evaluation by step, and one metric below; None before two losses were logged.

        >>> history = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_f1": 0.8}]
        >>> learning_curve(history, "f1").caption
        'Training loss from 0.7 to 0.5 in 2 steps, and f1 by step.'

    Args:
        history: `trainer.state.log_history`.
        metric: The key of the metric, with or without "eval_".
        best: The step of the best model, which gets a line.
    """
    key = None if metric is None else f"eval_{metric.removeprefix('eval_')}"
    curves = {name: _curve(history, name) for name in ("loss", "eval_loss", *([] if key is None else [key]))}
    if len(curves["loss"]) < 2:
        return None
    measured = key is not None and key != "eval_loss" and len(curves[key]) > 0
    figure, axes = _figure(2 if measured else 1, height=4.6 if measured else 3.2, share=True)
    for name, label, colour in (("loss", "training", BLUE), ("eval_loss", "evaluation", ORANGE)):
        if len(curves[name]):
            _line(axes[0], curves[name], label, colour, marker=name != "loss")
    axes[0].set_ylabel("loss")
    if len(curves["eval_loss"]):
        axes[0].legend(frameon=False)
    told = ""
    if measured and key is not None:
        _line(axes[1], curves[key], "", ORANGE, marker=True)
        axes[1].set_ylabel(key.removeprefix("eval_").replace("_", " "))
        told = f", and {key.removeprefix('eval_')} by step"
    for each in axes if best else ():
        each.axvline(float(best or 0), color=GREY, linestyle="--", linewidth=1)
    axes[-1].set_xlabel("step" + (" (dashed: the best model)" if best else ""))
    losses = curves["loss"]
    caption = f"Training loss from {losses[0, 1]:.2g} to {losses[-1, 1]:.2g} in {losses[-1, 0]:.0f} steps{told}."
    return Picture("learning_curve", caption, figure)


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> Floats:
    """Steps and values of one key [N, 2]; `MOST_POINTS` of them at most."""
    points = np.array([(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry]).reshape(
        -1, 2
    )
    return points[:: max(1, -(-len(points) // MOST_POINTS))]


# -- one picture each --------------------------------------------------------------------------------------------------


def _score_distribution(shown: Shown) -> Picture | None:
    """Scores for each label: two histograms, or boxes side by side."""
    groups = _by_label(shown)
    if len(groups) < 2:
        return None
    figure, (axes,) = _figure()
    if len(groups) == 2:
        everything = np.concatenate(list(groups.values()))
        low, high = (0.0, 1.0) if shown.probabilities else (float(everything.min()), float(everything.max()))
        edges = np.linspace(low, high, 41).tolist()
        for (label, scores), colour, filled in zip(groups.items(), (BLUE, ORANGE), (True, False), strict=True):
            weights = np.full(len(scores), 100 / len(scores))
            axes.hist(
                scores,
                edges,
                weights=weights,
                histtype="stepfilled" if filled else "step",
                color=colour,
                alpha=0.5 if filled else 1,
                linewidth=2,
                label=label,
            )
        axes.set_ylabel("% of the pairs with this label")
        axes.set_xlabel("score")
        if shown.threshold is not None and shown.task == "binary":
            axes.axvline(
                shown.threshold, color=GREY, linestyle="--", linewidth=1, label=f"threshold {shown.threshold:.3g}"
            )
        axes.legend(frameon=False)
    else:
        axes.boxplot(list(groups.values()), showfliers=False, **_BOXES)
        axes.set_xticks(range(1, len(groups) + 1), list(groups), rotation=30 if sum(map(len, groups)) > 40 else 0)
        axes.set_ylabel("probability of the right class" if shown.scores.ndim > shown.labels.ndim else "score")
        axes.set_xlabel("label")
    middles = ", ".join(f"{label}: {np.median(scores):.2f}" for label, scores in groups.items())
    return Picture("score_distribution", f"Scores by label. Medians: {middles}.", figure)


def _by_label(shown: Shown) -> dict[str, Floats]:
    """Scores of each label; of numbers in between for ranges with as many rows; those of labelled entries alone."""
    if shown.scores.ndim > shown.labels.ndim:  # the probability that the right class got
        names = shown.names or tuple(map(str, range(shown.scores.shape[1])))
        right = shown.scores[np.arange(len(shown.labels)), shown.labels.astype(np.int64)]
        found = {name: right[shown.labels == index] for index, name in enumerate(names)}
        return {_cut(name): scores for name, scores in list(found.items())[:MOST_BOXES] if len(scores)}
    keep = shown.labels != IGNORED
    scores, labels = shown.scores[keep], shown.labels[keep]
    values = np.unique(labels)
    if len(values) <= MOST_BOXES:
        return {f"label {value:g}": scores[labels == value] for value in values}
    edges = np.unique(np.quantile(labels, np.linspace(0, 1, 6)))
    places = np.clip(np.searchsorted(edges, labels, side="right") - 1, 0, len(edges) - 2)
    return {
        f"{edges[at]:.2g} to {edges[at + 1]:.2g}": scores[places == at]
        for at in range(len(edges) - 1)
        if (places == at).any()
    }


def _precision_recall(shown: Shown) -> Picture | None:
    positive = shown.labels == 1
    if positive.all() or not positive.any():
        return None
    cuts = _Cuts.of(shown.scores.ravel(), positive.ravel())
    precision, recall = cuts.precision()[1:], cuts.recall()[1:]
    every = max(1, len(recall) // MOST_POINTS)
    figure, (axes,) = _figure()
    axes.step(recall[::every], precision[::every], where="pre", color=BLUE, linewidth=2)
    axes.axhline(
        positive.mean(), color=GREY, linestyle=":", linewidth=1, label=f"all pairs positive: {positive.mean():.2f}"
    )
    average = cuts.average_precision()
    told = ""
    if shown.threshold is not None:
        chosen = shown.scores >= shown.threshold
        hits = float((chosen & positive).sum())
        point = (hits / positive.sum(), hits / max(int(chosen.sum()), 1))
        axes.plot(
            *point,
            "o",
            color=ORANGE,
            markersize=8,
            label=f"threshold {shown.threshold:.3g}: precision {point[1]:.2f}, recall {point[0]:.2f}",
        )
        told = f" At the threshold {shown.threshold:.3g} precision is {point[1]:.2f} and recall {point[0]:.2f}."
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left")
    return Picture("precision_recall", f"Precision by recall; average precision {average:.3f}.{told}", figure)


def _reliability(shown: Shown) -> Picture | None:
    """How often pairs are positive that get a probability, in bins of as many pairs."""
    if not shown.probabilities:
        return None
    if shown.scores.ndim > shown.labels.ndim:  # the probability of the class that was chosen
        stated, happened = shown.scores.max(axis=1), shown.scores.argmax(axis=1) == shown.labels
    else:
        stated, happened = shown.scores.ravel(), (shown.labels == 1).ravel()
    bins = reliability(stated, happened)
    means, shares, low, high, counts = (
        np.array([each[name] for each in bins]) for name in ("mean", "share", "low", "high", "rows")
    )
    figure, (axes,) = _figure()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="as often as stated")
    spans = np.maximum(np.stack([shares - low, high - shares]), 0)
    axes.errorbar(
        means, shares, spans, fmt="o-", color=BLUE, capsize=3, linewidth=1.5, label="this model, 95 % intervals"
    )
    of_classes = shown.scores.ndim > shown.labels.ndim
    axes.set(
        xlabel="probability of the chosen class" if of_classes else "score",
        ylabel="share that is right" if of_classes else "share of positive pairs",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.legend(frameon=False, loc="upper left")
    error = float(np.average(np.abs(shares - means), weights=counts))
    caption = f"What happened by what was stated, in {len(bins)} bins of as many pairs; {error:.3f} apart on average."
    return Picture("reliability", caption, figure)


def _confusion(shown: Shown) -> Picture | None:
    if shown.scores.ndim > shown.labels.ndim:
        count = shown.scores.shape[1]
        names = shown.names or tuple(map(str, range(count)))
        chosen, title = shown.scores.argmax(axis=1), "the class with the highest score"
    elif shown.threshold is not None:
        count, names = 2, ("0", "1")
        chosen, title = (
            (shown.scores >= shown.threshold).astype(np.int64),
            f"scores from {shown.threshold:.3g} on are 1",
        )
    else:
        return None
    if count > MOST_CLASSES:
        return None
    table = np.zeros((count, count), dtype=np.int64)
    np.add.at(table, (shown.labels.astype(np.int64).ravel(), chosen.ravel()), 1)
    shares = divide(table, table.sum(axis=1, keepdims=True), empty=0)
    size = max(3.6, 1.5 + 0.55 * count)
    figure, (axes,) = _figure(height=size, width=size + 0.8)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(count, count):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = f"{table[row, column]}\n{100 * shares[row, column]:.0f} %"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10 if count < 6 else 7)
    axes.set_xticks(range(count), [_cut(name) for name in names], rotation=30 if sum(map(len, names)) > 20 else 0)
    axes.set_yticks(range(count), [_cut(name) for name in names])
    axes.set(xlabel="predicted", ylabel="label")
    axes.spines[:].set_visible(False)
    right = float(np.trace(table) / max(int(table.sum()), 1))
    return Picture("confusion", f"Labels and predictions ({title}): {100 * right:.1f} % are right.", figure)


def _per_query(shown: Shown) -> Picture | None:
    """How many queries are answered how well."""
    values = _query_quality(shown)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None
    figure, (axes,) = _figure()
    axes.hist(values, np.linspace(0, 1, 21).tolist(), color=BLUE, alpha=0.8)
    axes.axvline(values.mean(), color=ORANGE, linewidth=2, label=f"mean {values.mean():.3f}")
    axes.set(xlabel="ndcg@10 of a query", ylabel="queries", xlim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    worst = float((values < 0.5).mean())
    caption = (
        f"Quality by query: ndcg@10 is {values.mean():.3f} on average, and below 0.5 for {100 * worst:.0f} % of them."
    )
    return Picture("quality_per_query", caption, figure)


def _query_quality(shown: Shown) -> Floats:
    return ranking_metrics(k=10).per_query(shown.scores, shown.labels)["ndcg@10"]


def _length_error(shown: Shown) -> Picture | None:
    """The mean error of rows by their length, in bins of as many rows."""
    if shown.lengths is None or len(np.unique(shown.lengths)) < 2:
        return None
    if shown.task == "ranking":
        error, name = 1 - _query_quality(shown), "1 - ndcg@10"
    elif shown.scores.ndim > shown.labels.ndim:
        error, name = (shown.scores.argmax(axis=1) != shown.labels).astype(np.float64), "share that is wrong"
    else:
        error, name = np.abs(shown.scores - shown.labels), "distance of score and label"
    bins = _equal_bins(shown.lengths)
    if len(bins) < 2:
        return None
    middles = np.array([np.median(shown.lengths[rows]) for rows in bins])
    means = np.array([np.nanmean(error[rows]) for rows in bins])
    spread = np.array([1.96 * np.nanstd(error[rows]) / np.sqrt(len(rows)) for rows in bins])
    figure, (axes,) = _figure()
    axes.errorbar(middles, means, spread, fmt="o-", color=BLUE, capsize=3, linewidth=1.5)
    axes.set(xlabel="characters of a row", ylabel=name)
    axes.set_ylim(bottom=min(0, float((means - spread).min())))
    caption = f"Error by length: {name} is {means[0]:.3f} for the shortest rows and {means[-1]:.3f} for the longest."
    return Picture("length_error", caption, figure)


_DRAWN: dict[str, tuple[Callable[[Shown], Picture | None], ...]] = {
    "binary": (_score_distribution, _precision_recall, _reliability, _confusion, _length_error),
    "numbers": (_score_distribution, _length_error),
    "classes": (_score_distribution, _reliability, _confusion, _length_error),
    "labels": (_score_distribution, _reliability),
    "ranking": (_score_distribution, _per_query, _length_error),
}

# -- what they share ---------------------------------------------------------------------------------------------------

_BOXES: dict[str, Any] = {
    "patch_artist": True,
    "boxprops": {"facecolor": BLUE, "alpha": 0.5},
    "medianprops": {"color": ORANGE, "linewidth": 2},
}


def _figure(rows: int = 1, height: float = 3.6, width: float = 5.6, share: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=120)
    axes = list(figure.subplots(rows, 1, squeeze=False, sharex=share)[:, 0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(axes: Axes, points: Floats, label: str, colour: str, marker: bool) -> None:
    axes.plot(*points.T, color=colour, linewidth=1.5, marker="o" if marker else None, markersize=4, label=label)


def _equal_bins(values: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The rows of up to `BINS` ranges of values with as many rows each; equal values are never parted."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    places = np.searchsorted(edges, values, side="right")
    return [np.flatnonzero(places == at) for at in range(len(edges) + 1) if (places == at).any()]


def _softmax(logits: Floats) -> Floats:
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=-1))


def _cut(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
