"""Pairs labelled by a bi-encoder: by cosines written out by hand, with others among the nearest."""

from __future__ import annotations

import numpy as np
import pytest

from cross_trainer.data.similarity import bi_encoder_pairs
from cross_trainer.errors import ConfigurationError, DataError

GIVEN = [(f"q{number % 4}", f"d{number}") for number in range(20)]


class Unit:
    """Texts as directions, drawn once."""

    def __init__(self, length=1.0):
        draw = np.random.default_rng(0)
        self.vectors = {text: draw.normal(size=5) for text in sorted({text for pair in GIVEN for text in pair})}
        for text, vector in self.vectors.items():
            self.vectors[text] = length * vector / np.linalg.norm(vector)

    def __call__(self, texts):
        return [self.vectors[text] for text in texts]


def test_labels_are_cosines_and_others_are_near():
    encode = Unit()
    made = [tuple(row.values()) for row in bi_encoder_pairs([*GIVEN, GIVEN[0]], encode, others=2, ranks=12)]
    assert [row[:2] for row in made[:20]] == GIVEN
    for first, second, label in made:
        cosine = float(encode.vectors[first] @ encode.vectors[second])
        assert label == pytest.approx(max(cosine, 0.0), abs=1e-6)
    assert 0.0 in {label for *_, label in made}
    assert len(set(made)) == len(made) == 20 + 4 * 10
    for query in ("q0", "q1", "q2", "q3"):
        own = [second for first, second in GIVEN if first == query]
        foreign = [second for _, second in GIVEN if second not in own]
        near = sorted(foreign, key=lambda text: -float(encode.vectors[query] @ encode.vectors[text]))[:12]
        drawn = [second for first, second, _ in made[20:] if first == query]
        assert len(drawn) == 10
        assert set(drawn) < set(near)


def test_another_seed_draws_others():
    first, again, second = (
        [tuple(row.values()) for row in bi_encoder_pairs(GIVEN, Unit(), ranks=15, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first[:20] == second[:20]
    assert first[20:] != second[20:]


def test_without_others_the_given_pairs_are_all():
    made = bi_encoder_pairs(GIVEN, Unit(), others=0)
    assert [(row["first"], row["second"]) for row in made] == GIVEN


@pytest.mark.parametrize(
    ("pairs", "length", "options", "error", "message"),
    [
        (GIVEN, 2.0, {}, DataError, r"products up to 3\.34.* whose vectors have length 1"),
        ([], 1.0, {}, DataError, "no pairs"),
        (GIVEN, 1.0, {"others": -1}, ConfigurationError, "others=-1"),
        (GIVEN, 1.0, {"ranks": 0}, ConfigurationError, "ranks=0"),
    ],
)
def test_what_makes_no_labels_is_refused(pairs, length, options, error, message):
    with pytest.raises(error, match=message):
        bi_encoder_pairs(pairs, Unit(length), **options)
