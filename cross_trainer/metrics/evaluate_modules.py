"""Modules of Hugging Face's `evaluate` as metrics.

    compute_metrics=from_evaluate("accuracy", my_metric, evaluate.combine(["precision", "recall"]))

P pairs, C classes or labels. `pairs.py` says what all metrics have in common.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cross_trainer.errors import ConfigurationError, MissingDependencyError
from cross_trainer.metrics.report import (
    IGNORED,
    Evaluation,
    Floats,
    MetricActivation,
    activate,
    check_options,
    misshaped,
    one_score,
    read,
    report,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateMetrics:
    """See `from_evaluate`, which makes it."""

    modules: tuple[Any, ...] = field(repr=False)
    names: tuple[str, ...]
    predictions: Literal["auto", "labels", "scores"] = "auto"
    threshold: float = 0.5
    activation: MetricActivation = "sigmoid"
    options: tuple[tuple[str, Any], ...] = ()
    confidence: float | None = None
    resamples: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, activation=self.activation, threshold=self.threshold)
        if not self.modules:
            raise ConfigurationError("from_evaluate got no module; give at least one, as in from_evaluate('accuracy')")
        if self.predictions not in ("auto", "labels", "scores"):
            raise ConfigurationError(f"predictions is {self.predictions!r}; give 'auto', 'labels' or 'scores'")

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """What the modules report for logits [P], [P, 1] or [P, C] and labels [P] or [P, C]."""
        logits, labels = read(evaluation)
        if logits.shape == labels.shape[:1] or logits.shape == (len(labels), 1):
            logits, labels = one_score(logits, labels, self)
        if logits.shape not in (labels.shape, (*labels.shape, logits.shape[-1])):
            raise misshaped(self, logits, labels, "logits [P] or [P, C] and labels [P], or [P, C] for several labels")
        keep = (labels != IGNORED).any(axis=tuple(range(1, labels.ndim)))
        logits, labels = logits[keep], labels[keep]
        references = labels.astype(np.int64) if (labels == np.floor(labels)).all() else labels
        if not len(labels):
            logger.warning("EvaluateMetrics: nothing to report, because there are no labelled rows")
            return {}
        return report(self, lambda rows: (self._compute(logits[rows], references[rows]), []), len(labels))

    def _compute(self, logits: Floats, references: NDArray[Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, module in zip(self.names, self.modules, strict=True):
            kind, argument = _wanted(module)
            kind = kind if self.predictions == "auto" else self.predictions
            as_labels = kind == "labels" or (kind == "auto" and logits.ndim > references.ndim)
            entries = self._chosen(logits, references) if as_labels else self._scored(logits, references)
            found = module.compute(**{argument: entries}, references=references, **dict(self.options))
            for key, value in _flat(found, name).items():
                if key in values:
                    raise ConfigurationError(
                        f"two modules report {key!r}; give them prefixes: evaluate.combine(..., force_prefix=True)"
                    )
                values[key] = value
        return values

    def _chosen(self, logits: Floats, references: NDArray[Any]) -> NDArray[np.int64]:
        if logits.ndim > references.ndim:
            return np.asarray(logits.argmax(axis=-1))
        return (activate(logits, self.activation) >= self.threshold).astype(np.int64)

    def _scored(self, logits: Floats, references: NDArray[Any]) -> Floats:
        if logits.ndim > references.ndim and self.activation == "sigmoid":
            from scipy.special import softmax

            return np.asarray(softmax(logits, axis=-1))
        return activate(logits, self.activation)


def from_evaluate(
    *modules: Any,
    predictions: Literal["auto", "labels", "scores"] = "auto",
    threshold: float = 0.5,
    activation: MetricActivation = "sigmoid",
    confidence: float | None = None,
    resamples: int = 200,
    seed: int = 0,
    **options: Any,
) -> EvaluateMetrics:
    """Use modules of Hugging Face's `evaluate` as metrics.

        >>> from transformers import EvalPrediction
        >>> class Accuracy:
        ...     def compute(self, predictions, references):
        ...         return {"accuracy": (predictions == references).mean()}
        >>> logits, labels = np.array([2.0, 1.0, -1.0, -2.0]), np.array([1, 0, 0, 0])
        >>> from_evaluate(Accuracy(), predictions="labels")(EvalPrediction(logits, labels))
        {'accuracy': 0.75}

    Takes logits [P], [P, 1] or [P, C] with labels [P], or [P, C] with labels [P, C] for several labels at once. Keys
    are the modules' own; a value that is an array gets a key for each entry, `<key>_0` and so on.

    Args:
        *modules: Names for `evaluate.load` (which downloads them), or objects with
            `compute(predictions=..., references=...)`: a loaded module, an `evaluate.combine` of several, your own
            `evaluate.Metric`. `evaluate` itself is only imported for names.
        predictions: What a module gets. "labels": the class of the highest logit; for one logit, or several labels at
            once, 0 and 1 by `threshold`. "scores": activated scores. "auto": labels for a module whose declared
            features are integers (it would truncate scores to 0), scores for one that declares floats or calls its
            argument `prediction_scores`; if it declares nothing, labels for several classes and scores otherwise.
        threshold: An activated score >= threshold is a 1.
        activation: What turns a logit into a score. With "sigmoid", the scores of several classes are softmax's.
        confidence: Level of the bootstrap intervals, between 0 and 1; None for no intervals.
        resamples: Number of bootstrap draws; fewer than elsewhere, since a module takes about 10 ms for each.
        seed: Seed of the bootstrap.
        **options: Passed on to each module's `compute`, as in `average="macro"`.

    Raises:
        MissingDependencyError: A name is given and `evaluate` isn't installed.
        ConfigurationError: There is no module, an argument isn't one, or one is out of its range; in a call, the shapes
            don't match, two modules have the same key, or a value isn't a number.
    """
    loaded = tuple(_load(module) if isinstance(module, str) else module for module in modules)
    names = tuple(str(getattr(module, "name", None) or type(module).__name__) for module in loaded)
    for module in loaded:
        if not callable(getattr(module, "compute", None)):
            raise ConfigurationError(f"{module!r} has no compute(predictions=, references=); give a module or its name")
    fixed = tuple(sorted(options.items()))
    return EvaluateMetrics(loaded, names, predictions, threshold, activation, fixed, confidence, resamples, seed)


def _load(name: str) -> Any:
    try:
        import evaluate
    except ImportError as error:
        raise MissingDependencyError(
            f"from_evaluate({name!r}) loads a module by name, which needs evaluate: "
            "pip install 'cross-trainer[evaluate]'"
        ) from error
    return evaluate.load(name)


def _wanted(module: Any) -> tuple[str, str]:
    """Whether a module declares labels, scores or nothing ("auto"), and the name of its argument for them."""
    parts = getattr(module, "evaluation_modules", None)
    if parts:
        wanted = {_wanted(part) for part in parts}
        if len(wanted) > 1:
            raise ConfigurationError(
                "evaluate.combine joins modules for labels with modules for scores; pass them separately"
            )
        return wanted.pop()
    declared = getattr(module, "features", None) or {}
    first = declared[0] if isinstance(declared, list) else declared
    if "prediction_scores" in first:
        return "scores", "prediction_scores"
    feature = first.get("predictions")
    dtype = str(getattr(getattr(feature, "feature", feature), "dtype", ""))  # the feature of a list is its entries'
    kind = "scores" if "float" in dtype else "labels" if "int" in dtype or "bool" in dtype else "auto"
    return kind, "predictions"


def _flat(found: Mapping[str, Any] | None, name: str) -> dict[str, float]:
    """A module's result as plain floats."""
    values: dict[str, float] = {}
    for key, value in (found or {}).items():
        try:
            entries = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"{name} reports {key}={value!r}, which isn't a number; use modules that report numbers"
            ) from None
        values |= (
            {key: float(entries)} if not entries.ndim else {f"{key}_{i}": float(v) for i, v in enumerate(entries.flat)}
        )
    return values
