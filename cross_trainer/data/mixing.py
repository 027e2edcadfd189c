"""Several data sets by name in one training: which of them an update belongs to, and its rows.

    items = MixedItems({"graded": MappedItems(...), "lists": MappedItems(...)}, update=32)
    sampler = MixingSampler(items, shares("even", items.updates()), order)

One update belongs to one data set, over all its accumulated batches and all processes, so every batch has rows of one
shape and one loss. What an update holds follows from the seed, the pass over the data and the number of the update
alone: it is the same in any number of processes and workers, and after training was resumed.

Mapped data sets have epochs. An epoch has as many updates as it takes to read all rows of all data sets once; `mixing`
says how many of them each data set gets, and their order is shuffled. A data set that has been read to its end starts
over in a new order, and one that hasn't goes on in the next epoch where it stopped. Where one of them is a stream there
is one endless epoch, in which each update draws its data set.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler

from cross_trainer.data.items import Item, MappedItems, StreamedItems
from cross_trainer.errors import ConfigurationError, DataError, short

Mixing: TypeAlias = "str | float | Mapping[str, float]"
Order: TypeAlias = "Callable[[str, int], Sequence[int]]"
"""The rows of a data set in the order of a pass over it, by the data set's name and the number of the pass."""

PROPORTIONAL, EVEN = "proportional", "even"


def check_names(argument: str, given: Iterable[str], known: Iterable[str], *, every: bool = True) -> None:
    """Check the names in a mapping by data sets.

    Args:
        argument: What the mapping is.
        given: Its names.
        known: Those of the data sets.
        every: Whether each data set must have an entry.

    Raises:
        ConfigurationError: A name is unknown or missing.
    """
    given, known = list(given), list(known)
    unknown = [name for name in given if name not in known]
    missing = [name for name in known if every and name not in given]
    if unknown or missing:
        problem = f"has {unknown[0]!r}, which is no data set" if unknown else f"lacks {missing[0]!r}"
        raise ConfigurationError(f"{argument} {problem}. The data sets trained on are {known}.")


def check_mixing(mixing: Mixing, streams: Mapping[str, bool]) -> None:
    """Check what says how data sets are mixed.

    Args:
        mixing: "proportional", "even", a weight for each data set, or a temperature.
        streams: Whether each data set is a stream.

    Raises:
        ConfigurationError: It is something else, a weight or a temperature isn't positive, a name is unknown or
            missing, or it depends on the size of a stream.
    """
    if isinstance(mixing, Mapping):
        check_names("mixing", mixing, streams)
        for name, weight in mixing.items():
            if not _is_positive(weight):
                raise ConfigurationError(
                    f"mixing: the weight of {name!r} is {short(weight)}. Give a number above 0, or leave the data set "
                    "out."
                )
        return
    if mixing == EVEN:
        return
    if mixing != PROPORTIONAL and not _is_positive(mixing):
        hint = " It differs from 'even', where no data set ends the epoch." if mixing == "round_robin" else ""
        raise ConfigurationError(
            f"mixing={short(mixing)}: expected 'proportional', 'even', {{name: weight, ...}}, or a temperature above 0."
            f"{hint}"
        )
    endless = next((name for name, is_stream in streams.items() if is_stream), None)
    if endless is not None:
        raise ConfigurationError(
            f"mixing={mixing!r} goes by the number of rows, and {endless!r} is a stream, whose number isn't known. Set "
            "mixing='even' or mixing={name: weight, ...}."
        )


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def shares(mixing: Mixing, sizes: Mapping[str, int]) -> dict[str, float]:
    """The share of all updates that each data set gets; they add up to 1.

    >>> shares("proportional", {"large": 90, "small": 10})
    {'large': 0.9, 'small': 0.1}
    >>> shares(2.0, {"large": 90, "small": 10})  # sizes to the power of 1 / 2
    {'large': 0.75, 'small': 0.25}

    Args:
        mixing: As `check_mixing` takes it. A temperature T gives size^(1 / T): 1 is "proportional", and the higher it
            is, the more even (Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild",
            section 3.3).
        sizes: Updates that it takes to read each data set once; of streams any number, as nothing depends on it.
    """
    if isinstance(mixing, Mapping):
        weights = {name: float(mixing[name]) for name in sizes}
    elif isinstance(mixing, str):
        weights = {name: 1.0 if mixing == EVEN else float(size) for name, size in sizes.items()}
    else:
        weights = {name: size ** (1 / mixing) for name, size in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


class Place(NamedTuple):
    """Where an item of several data sets is found.

    Attributes:
        name: Its data set.
        turn: The pass over that data set, counted from 0.
        row: Its row; one past the end fills a batch up.
    """

    name: str
    turn: int
    row: int


class MixedItems(Dataset[Item]):
    """The items of several mapped data sets, found by their `Place`.

    Args:
        parts: Each data set.
        update: Rows of an update, on all processes.
        drop_last: Whether the last rows of a pass, which don't fill an update, are left out.

    Raises:
        ConfigurationError: Nothing would be left of a data set.
    """

    def __init__(self, parts: Mapping[str, MappedItems], update: int, *, drop_last: bool = False) -> None:
        self.parts = dict(parts)
        self.update = update
        self.drop_last = drop_last
        self.epoch = 0
        for name, size in self.updates().items():
            if not size:
                raise ConfigurationError(
                    f"dataloader_drop_last=True leaves nothing of the data set {name!r}: it has {len(parts[name])} "
                    f"rows, and an update has {update}."
                )

    def updates(self) -> dict[str, int]:
        """How many updates it takes to read each data set once."""
        more = 0 if self.drop_last else self.update - 1
        return {name: (len(part) + more) // self.update for name, part in self.parts.items()}

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """All rows of all data sets."""
        return sum(map(len, self.parts.values()))

    def __getitem__(self, place: Place) -> Item:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[Place]) -> list[Item]:
        """The items of a batch, which is of one pass over one data set."""
        name, turn, _ = places[0]
        return self.parts[name].at([place.row for place in places], turn)


class MixingSampler(Sampler[Place]):
    """The places of an epoch, update by update; each update is filled up with places past its data set's end.

    Args:
        items: The data sets.
        weights: The share of each, see `shares`.
        order: The order of a pass over each.
        seed: Of the order of updates.
    """

    def __init__(self, items: MixedItems, weights: Mapping[str, float], order: Order, seed: int = 0) -> None:
        self.items = items
        self.sizes = items.updates()
        total = sum(self.sizes.values())
        self.counts = {name: max(1, round(total * weight)) for name, weight in weights.items()}
        self.order = order
        self.seed = seed

    def __len__(self) -> int:
        return sum(self.counts.values()) * self.items.update

    def schedule(self, epoch: int) -> list[str]:
        """The data set of each update of an epoch."""
        names = [name for name, count in self.counts.items() for _ in range(count)]
        random.Random(f"{self.seed}:{epoch}").shuffle(names)  # noqa: S311
        return names

    def __iter__(self) -> Iterator[Place]:
        epoch, update = self.items.epoch, self.items.update
        begun: Counter[str] = Counter()
        orders: dict[str, tuple[int, Sequence[int]]] = {}
        for name in self.schedule(epoch):
            turn, at = divmod(epoch * self.counts[name] + begun[name], self.sizes[name])
            begun[name] += 1
            if orders.get(name, (-1,))[0] != turn:
                orders[name] = turn, self.order(name, turn)
            rows = orders[name][1][at * update : (at + 1) * update]
            yield from (Place(name, turn, int(row)) for row in rows)
            yield from [Place(name, turn, len(self.items.parts[name]))] * (update - len(rows))


class MixedStream(IterableDataset[Item]):
    """The items of several data sets, streams among them, without an end: each update draws its data set.

    Args:
        parts: Each data set; streams whose number of items is a multiple of `update`.
        update: Rows of an update, on all processes.
        weights: The share of each, see `shares`.
        order: The order of a pass over a mapped data set.
        seed: Of the draws.
    """

    def __init__(
        self,
        parts: Mapping[str, MappedItems | StreamedItems],
        update: int,
        weights: Mapping[str, float],
        order: Order,
        seed: int = 0,
    ) -> None:
        self.parts = dict(parts)
        self.update = update
        self.weights = dict(weights)
        self.order = order
        self.seed = seed

    def drawn(self, number: int) -> str:
        """The data set of an update, counted from 0."""
        draw = random.Random(f"{self.seed}:{number}")  # noqa: S311
        return draw.choices(list(self.weights), list(self.weights.values()))[0]

    def __iter__(self) -> Iterator[Item]:
        sources = {name: self._endless(name) for name in self.parts}
        for number in itertools.count():
            yield from itertools.islice(sources[self.drawn(number)], self.update)

    def _endless(self, name: str) -> Iterator[Item]:
        """Pass after pass over a data set."""
        for turn in itertools.count():
            empty = True
            for item in self._pass(self.parts[name], name, turn):
                empty = False
                yield item
            if empty:
                raise DataError(
                    f"Data set {name!r}: pass {turn + 1} over the stream has no rows. Give a stream that starts over, "
                    "such as IterableDataset.from_generator(function)."
                )

    def _pass(self, part: MappedItems | StreamedItems, name: str, turn: int) -> Iterator[Item]:
        if isinstance(part, StreamedItems):
            part.set_epoch(turn)
            yield from part
            return
        rows = [*map(int, self.order(name, turn)), *[len(part)] * (-len(part) % self.update)]
        for start in range(0, len(rows), self.update):
            yield from part.at(rows[start : start + self.update], turn)


def drawing(*key: object) -> np.random.Generator:
    """Random numbers that depend on `key` alone."""
    return np.random.default_rng(list(":".join(map(str, key)).encode()))


def random_order(rows: int, *key: object) -> Sequence[int]:
    """The numbers below `rows` in an order that depends on `key` alone."""
    order: Sequence[int] = drawing(*key).permutation(rows)  # type: ignore[assignment]
    return order
