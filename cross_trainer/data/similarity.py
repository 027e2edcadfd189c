"""What a bi-encoder knows about pairs of texts, for a cross-encoder to start from.

A checkpoint trained as a bi-encoder says by its vectors which texts are similar. As a cross-encoder it gets a new head,
which asks for none of that. Training on the vectors' own similarity first keeps it, and needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from cross_trainer.data.retrieval import DenseRetriever
from cross_trainer.errors import DataError, check_whole

ROUNDED = 1e-3
"""How far above 1 the cosine of two vectors of 16 bits may come."""


def bi_encoder_pairs(
    pairs: Sequence[tuple[str, str]], encoder: Any, *, others: int = 1, ranks: int = 50, seed: int = 0
) -> Dataset:
    """Pairs of texts with the similarity of their vectors as labels: given ones, and others of the same first texts.

        >>> vectors = {"kite": (1.0, 0.0), "a kite": (0.75, 0.66), "egg": (0.0, 1.0), "an egg": (0.0, 1.0)}
        >>> pairs = [("kite", "a kite"), ("egg", "an egg")]
        >>> made = bi_encoder_pairs(pairs, lambda texts: [vectors[text] for text in texts])
        >>> [tuple(row.values()) for row in made.select(range(3))]
        [('kite', 'a kite', 0.75), ('egg', 'an egg', 1.0), ('kite', 'an egg', 0.0)]

    Papers: Thakur et al. 2021, Augmented SBERT, which labels pairs that were found by similarity, in the other
    direction; Hinton et al. 2015, Distilling the Knowledge in a Neural Network.

    Args:
        pairs: P pairs of two texts.
        encoder: See `DenseRetriever` (extra `dense` for a name).
        others: For each given pair of a first text, how many pairs are added: with second texts of the data, drawn from
            those most similar to the first text.
        ranks: From how many of these is drawn.
        seed: For drawing.

    Returns:
        Columns `first`, `second` and `label`, the cosine, or 0 where it is below. Pairs that are given twice are there
        once.

    Raises:
        ConfigurationError: `others` or `ranks` is out of its range, or there is no such encoder.
        DataError: There are no pairs, vectors aren't finite, or their products are no cosines.
        MissingDependencyError: sentence-transformers isn't installed.
    """
    check_whole("others", others, lowest=0)
    check_whole("ranks", ranks)
    if not pairs:
        raise DataError("There are no pairs to label.")
    retriever = DenseRetriever(encoder)
    own: dict[str, set[str]] = {}
    for first, second in pairs:
        own.setdefault(first, set()).add(second)
    made = list(dict.fromkeys(pairs))
    if others:
        texts, draw = list(dict.fromkeys(second for _, second in pairs)), np.random.default_rng(seed)
        most = max(map(len, own.values()))
        hits = retriever.over(texts)(list(own), min(len(texts), ranks + most))
        for (first, seconds), found in zip(own.items(), hits, strict=True):
            near = [texts[place] for place, _ in found if texts[place] not in seconds][:ranks]
            drawn = draw.permutation(len(near))[: others * len(seconds)]
            made += [(first, near[place]) for place in drawn]
    cosines = retriever.score(made)
    if abs(cosines).max() > 1 + ROUNDED:
        raise DataError(
            f"The encoder's vectors have products up to {abs(cosines).max():.3g}. Labels are cosines: give an encoder "
            "whose vectors have length 1, or a SentenceTransformer whose similarity is the cosine."
        )
    labels = [min(1.0, max(0.0, float(cosine))) for cosine in cosines]
    return Dataset.from_dict({"first": [a for a, _ in made], "second": [b for _, b in made], "label": labels})
