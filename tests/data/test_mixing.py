"""Which data set an update belongs to: shares that add up, in an order that depends on seed and pass alone."""

from __future__ import annotations

import itertools

import pytest

from cross_trainer.data.columns import Columns
from cross_trainer.data.items import MappedItems, StreamedItems
from cross_trainer.data.mixing import MixedItems, MixedStream, MixingSampler, random_order, shares
from cross_trainer.errors import DataError

COLUMNS = Columns("a", ("b",), "label")


def rows(count):
    return [{"a": f"first {index}", "b": f"second {index}", "label": 1} for index in range(count)]


def mapped(name, count):
    return MappedItems(rows(count), COLUMNS, training=True, name=name)


@pytest.mark.parametrize("mixing", ["proportional", "even", 3, {"a": 2, "b": 1, "c": 0.5}])
def test_shares_add_up(mixing):
    found = shares(mixing, {"a": 50, "b": 7, "c": 1})
    assert sum(found.values()) == pytest.approx(1)
    assert found["a"] >= found["b"] >= found["c"] > 0


def test_the_order_depends_on_seed_and_epoch_alone():
    def places(seed, epoch):
        items = MixedItems({"a": mapped("a", 20), "b": mapped("b", 9)}, update=4)
        items.set_epoch(epoch)
        return list(
            MixingSampler(items, {"a": 0.5, "b": 0.5}, lambda name, turn: random_order(20, seed, name, turn), seed)
        )

    assert places(1, 2) == places(1, 2)
    assert len({tuple(places(seed, epoch)) for seed, epoch in itertools.product((1, 2), (0, 1))}) == 4
    found = places(1, 0)
    for start in range(0, len(found), 4):
        assert len({(place.name, place.turn) for place in found[start : start + 4]}) == 1


def test_every_update_of_a_stream_is_of_one_pass_over_one_data_set():
    parts = {
        "a": StreamedItems(rows(10), COLUMNS, 4, training=True, name="a"),
        "b": mapped("b", 6),
    }
    stream = MixedStream(parts, 4, {"a": 0.5, "b": 0.5}, lambda name, turn: range(6))
    items = list(itertools.islice(stream, 80))
    for start in range(0, 80, 4):
        update = items[start : start + 4]
        assert {item.dataset for item in update} == {stream.drawn(start // 4)}
    seen = [item.number for item in items if item.dataset == "a" and item.row is not None]
    assert seen[:20] == [*range(10), *range(10)]
    assert [item.number for item in items if item.dataset == "b" and item.row is not None][:7] == [*range(6), 0]


def test_a_stream_that_can_be_read_once_says_so():
    parts = {"a": StreamedItems(iter(rows(10)), COLUMNS, 4, training=True, name="a")}
    stream = MixedStream(parts, 4, {"a": 1.0}, lambda name, turn: ())
    with pytest.raises(DataError, match="Data set 'a': pass 2 over the stream has no rows"):
        list(itertools.islice(stream, 20))
