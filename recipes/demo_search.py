"""Synthetic search for `--demo`: queries with the documents that a first stage might have found for them.

As in `demo_data`, the texts are made from the word lists of `demo_words`, with fixed seeds, and figures measured on
them say nothing about real data.

    search_queries()       query, documents, labels: lists of different lengths, graded 0, 1, 2
    search_collection()    (query, positive) pairs and a corpus to mine negatives from

Some of a query's documents are about other aspects of the place that it names, and some about the same aspect of other
places. Shared words find the place, but not the aspect, which is worded differently. The held-out splits ask about
places that never occur in training, and some of their questions don't occur there either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value
from demo_data import SEEDS, Dice, Words, make_splits
from demo_words import FACTS, NAMES, TOPICS

QUERIES_A_PLACE = {"train": 3, "validation": 4, "test": 4}


@dataclass(frozen=True)
class _Document:
    """A text on a place: the topic that it `answers`, and one that it `touches` without answering it."""

    text: str
    place: str
    answers: int | None = None
    touches: int | None = None

    def grade(self, place: str, topic: int) -> int:
        """2: holds the answer; 1: is about the matter; 0: is not."""
        if self.place != place:
            return 0
        return 2 if self.answers == topic else int(self.touches == topic)


def _topics(split: str) -> list[tuple[Words, Words, str]]:
    """Questions, answers and a vague text on each topic. The held-out splits have topics that training doesn't have."""
    common, held_out = TOPICS.strip().split("## held out\n")
    lines = common.strip().splitlines() if split == "train" else (common + held_out).strip().splitlines()
    topics = []
    for line in lines:
        questions, answers, vague = (tuple(text.strip() for text in part.split("|")) for part in line.split("##"))
        topics.append((questions, answers, vague[0]))
    return topics


def _documents(split: str, dice: Dice) -> dict[str, list[_Document]]:
    """All that is written about each place. Texts on the same matter of the same place agree on the facts."""
    heads, tails, kinds = NAMES[split]
    places = dice.shuffled(
        [f"{head}{tail} {kind}" for head in heads.split() for tail in tails.split() for kind in kinds.split(", ")]
    )
    return {place: _about(place, _topics(split), dice) for place in places[: 120 if split == "train" else 30]}


def _about(place: str, topics: Sequence[tuple[Words, Words, str]], dice: Dice) -> list[_Document]:
    documents = []
    for topic, (_, answers, vague) in enumerate(topics):
        facts = {name: dice.pick(values.split(", ")) for name, values in FACTS.items()}
        for answer in dice.shuffled(answers)[: dice.pick((1, 2, 2, 3))]:
            text, touches = _sentence(answer, place, facts), None
            if dice.chance(0.3):  # passages wander off to other matters
                touches = dice.other(range(len(topics)), topic)
                aside = _sentence(topics[touches][2], place, facts)
                text = f"{aside} {text}" if dice.chance(0.5) else f"{text} {aside}"
            documents.append(_Document(text, place, topic, touches))
        if dice.chance(0.6):
            documents.append(_Document(_sentence(vague, place, facts), place, None, topic))
    return documents


def _sentence(template: str, place: str, facts: dict[str, str]) -> str:
    text = template.format(e=f"the {place}", **facts)
    return text[0].upper() + text[1:]


def _search_rows(split: str, dice: Dice) -> list[dict[str, Any]]:
    """Some questions on each place, with texts that answer them, on other topics and on other places."""
    written = _documents(split, dice)
    elsewhere = [document for documents in written.values() for document in documents]
    topics = _topics(split)
    rows = []
    for place, documents in written.items():
        for topic in dice.shuffled(range(len(topics)))[: QUERIES_A_PLACE[split]]:
            answers = [document for document in documents if document.grade(place, topic) == 2]
            near = [document for document in documents if document.grade(place, topic) == 1]
            far = [document for document in documents if document.grade(place, topic) == 0]
            same = [document for document in elsewhere if document.place != place and document.answers == topic]
            chosen = dice.shuffled(answers)[: dice.pick((1, 1, 2))] + near[: dice.pick((0, 1))]
            chosen += dice.shuffled(far)[: dice.pick((1, 2, 3))] + [
                dice.pick(same) for _ in range(dice.pick((0, 1, 2)))
            ]
            others = [dice.pick(elsewhere) for _ in range(dice.pick((2, 3)))]
            chosen += [document for document in others if document.place != place]
            chosen = dice.shuffled(list(dict.fromkeys(chosen)))
            query = dice.pick(topics[topic][0]).format(e=f"the {place}")
            labels = [document.grade(place, topic) for document in chosen]
            rows.append({"query": query, "documents": [document.text for document in chosen], "labels": labels})
    return rows


def search_queries() -> DatasetDict:
    """Queries with their candidates: `query`, `documents`, `labels`. Synthetic.

    Label 2: the document holds the answer; 1: it touches the topic without answering; 0: it is about another topic or
    another place. Queries have different numbers of documents.
    """
    features = Features({"query": Value("string"), "documents": List(Value("string")), "labels": List(Value("int64"))})
    return make_splits(lambda split: _search_rows(split, Dice(SEEDS[split] + 3)), features)


def search_collection() -> tuple[Dataset, list[str]]:
    """What negatives are mined from: (`query`, `positive`) pairs and a corpus of distinct documents. Synthetic.

    The queries are those of `search_queries()["train"]`, each with every document of its row that answers it. The
    corpus holds these, unlabelled answers to the same queries, as real collections do, and thousands of other
    documents.
    """
    pairs = [
        {"query": row["query"], "positive": document}
        for row in _search_rows("train", Dice(SEEDS["train"] + 3))
        for document, label in zip(row["documents"], row["labels"], strict=True)
        if label == 2
    ]
    written = _documents("train", Dice(SEEDS["train"] + 3))  # the same dice: the same texts
    corpus = list(dict.fromkeys(document.text for documents in written.values() for document in documents))
    return Dataset.from_list(pairs), corpus
