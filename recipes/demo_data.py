"""Synthetic data for `--demo`: small data sets that need neither a network nor files.

None of it was collected anywhere. Every text is made from the word lists of `demo_words`, with fixed seeds, so all
processes and all versions of Python see the same rows. The data sets show that training works and what it looks like;
figures measured on them say nothing about real data.

    similarity_pairs()     sentence1, sentence2, score from 0 to 5
    duplicate_questions()  sentence1, sentence2, label: different, duplicate
    entailment_pairs()     premise, hypothesis, label: entailment, neutral, contradiction

Each has the splits `train`, `validation` and `test`. The held-out splits are about things, people, actions and topics
that never occur in training, partly in other constructions, so memory doesn't solve them. Nor does counting shared
words: texts that mean the same are worded differently, and texts that don't differ by a small edit. `demo_search` holds
queries and documents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from demo_words import (
    ABOUT_SKILLS,
    ABOUT_THINGS,
    ABOUT_TRIPS,
    CITIES,
    CONTEXTS,
    COUNTS,
    DOMAINS,
    FORMS,
    FRAMES,
    MEETINGS,
    MOODS,
    SKILLS,
    THINGS,
)

SIZES = {"train": 2400, "validation": 400, "test": 400}
SEEDS = {"train": 11, "validation": 22, "test": 33}
T = TypeVar("T")
Words = tuple[str, ...]  # ways to say one thing


class Dice:
    """Random choices made from `random()` alone: the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def other(self, options: Sequence[T], *unwanted: T) -> T:
        return self.pick([option for option in options if option not in unwanted])

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [item for _, item in sorted(((self._random(), item) for item in items), key=lambda entry: entry[0])]


def _list(text: str) -> tuple[Words, ...]:
    return tuple(tuple(entry.strip().split("|")) for entry in text.split(","))


def _collect(count: int, draw: Callable[[int], dict[str, Any] | None], key: tuple[str, str]) -> list[dict[str, Any]]:
    """`count` different rows; `draw(i)` makes the i-th, or None to be asked again. Order doesn't count."""
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    while len(rows) < count:
        row = draw(len(rows))
        pair = tuple(sorted((row[key[0]], row[key[1]]))) if row else ()
        if row and pair not in seen and pair[0] != pair[1]:
            seen.add(pair)
            rows.append(row)
    return rows


# -- scenes: who does what to what, and where --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Domain:
    """Words that go together: any of these people can do any of these things to any of these objects."""

    people: tuple[Words, ...]
    actions: tuple[Words, ...]
    kind: str
    things: tuple[Words, ...]
    places: tuple[Words, ...]


def _domains(split: str) -> list[_Domain]:
    lines = DOMAINS.strip().splitlines()
    domains = []
    for upper, lower in zip(lines[::2], lines[1::2], strict=True):
        of, people, actions = upper.split(";")
        kind, things, places = lower.split(";")
        if of == split:
            domains.append(_Domain(_list(people), _list(actions), kind.strip(), _list(things), _list(places)))
    return domains


@dataclass(frozen=True)
class _Event:
    agent: Words
    verb: Words
    thing: Words
    count: int = 1
    mood: Words = ()
    meeting: bool = False
    negated: bool = False


@dataclass(frozen=True)
class _Scene:
    events: tuple[_Event, ...]
    place: Words = ()

    @property
    def first(self) -> _Event:
        return self.events[0]

    def change(self, slot: str, value: Any) -> _Scene:
        if slot == "place":
            return replace(self, place=value)
        return replace(self, events=(replace(self.first, **{slot: value}), *self.events[1:]))


@dataclass(frozen=True)
class _Style:
    """How a scene is put into words; another style says the same with other words."""

    variant: int
    form: str
    frame: str
    place_first: bool
    article: str
    reverse: bool


def _a(noun: str, article: str = "a") -> str:
    return f"the {noun}" if article == "the" else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    head, _, tail = noun.partition(" from ")
    if head.endswith("person"):
        head = head[:-6] + "people"
    elif head.endswith("woman"):
        head = head[:-5] + "women"
    else:
        head += "es" if head.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{head} from {tail}" if tail else head


def _clause(event: _Event, style: _Style) -> str:
    def say(words: Words) -> str:
        return words[style.variant % len(words)]

    noun = f"{say(event.mood)} {say(event.agent)}" if event.mood else say(event.agent)
    doing, done = say(event.verb).split("/")
    what = _a(say(event.thing), style.article if event.meeting else "a")
    be, isnt = ("is", "is not") if event.count == 1 else ("are", "are not")
    who = _a(noun, style.article) if event.count == 1 else f"{say(COUNTS[event.count])} {_plural(noun)}"
    if style.form == "passive":
        return f"{what} {'is not' if event.negated else 'is'} being {done} by {who}"
    if style.form == "there" and event.count == 1:
        return f"no {noun} is {doing} {what}" if event.negated else f"there is {_a(noun)} {doing} {what}"
    if style.form == "cleft" and not event.negated:
        return f"it is {who} that {be} {doing} {what}"
    return f"{who} {isnt if event.negated else be} {doing} {what}"


def _say(scene: _Scene, style: _Style) -> str:
    events = scene.events[::-1] if style.reverse else scene.events
    text = " while ".join(_clause(event, style) for event in events)
    if scene.place:
        place = scene.place[style.variant % len(scene.place)]
        text = f"{place}, {text}" if style.place_first or len(events) > 1 else f"{text} {place}"
    text = style.frame + text
    return text[0].upper() + text[1:] + "."


class _World:
    """One domain and one split's words: scenes are drawn from it, and edited into scenes with another meaning."""

    def __init__(self, split: str, dice: Dice) -> None:
        self.split, self.dice = split, dice
        self.domains = _domains(split)
        self.meetings, self.moods = _list(MEETINGS[split]), _list(MOODS[split])
        self.forms, self.frames = FORMS[split], FRAMES[split]
        self.move()

    def move(self) -> None:
        """Go on to another domain."""
        self.domain = self.dice.pick(self.domains)

    def style(self) -> _Style:
        pick, chance = self.dice.pick, self.dice.chance
        return _Style(pick((0, 1)), pick(self.forms), pick(self.frames), chance(0.3), pick(("a", "the")), chance(0.5))

    def restyle(self, style: _Style) -> _Style:
        """Other words throughout, and another construction."""
        form = self.dice.other(self.forms, style.form)
        return replace(self.style(), variant=1 - style.variant, form=form, reverse=not style.reverse)

    def scene(self) -> _Scene:
        first = self._event()
        events: tuple[_Event, ...] = (first,)
        if self.dice.chance(0.3):
            second = self._event(first.agent, first.thing)
            if second.verb != first.verb and second.thing != first.thing:
                events += (replace(second, mood=(), count=1),)
        return _Scene(events, self.dice.pick(self.domain.places) if self.dice.chance(0.65) else ())

    def _event(self, *busy: Words) -> _Event:
        dice, domain = self.dice, self.domain
        agent = dice.other(domain.people, *busy)
        if dice.chance(0.3):
            return _Event(agent, dice.pick(self.meetings), dice.other(domain.people, agent, *busy), meeting=True)
        count = dice.pick((2, 3, 4, 6)) if dice.chance(0.25) else 1
        mood = dice.pick(self.moods) if dice.chance(0.35) else ()
        return _Event(agent, dice.pick(domain.actions), dice.pick(domain.things), count, mood)

    def edit(self, scene: _Scene, kind: str) -> _Scene | None:
        """The scene after an edit such as "other thing" or "no place"; None where the edit doesn't fit the scene."""
        edits = {"other": self._other, "no": self._without, "general": self._general, "swapped": self._swapped}
        name, _, slot = kind.partition(" ")
        return edits[name](scene, slot) if kind != "same" else scene

    def _other(self, scene: _Scene, slot: str) -> _Scene | None:
        meeting, mood = scene.first.meeting, scene.first.mood
        options: dict[str, Sequence[Any]] = {
            "agent": self.domain.people,
            "verb": self.meetings if meeting else self.domain.actions,
            "thing": () if meeting else self.domain.things,
            "count": () if meeting else tuple(COUNTS),
            "mood": [self.moods[self.moods.index(mood) ^ 1]] if mood else (),
            "place": self.domain.places if scene.place else (),
        }
        busy = [
            scene.place,
            scene.first.count,
            *(words for event in scene.events for words in (event.agent, event.verb, event.thing)),
        ]
        free = [option for option in options[slot] if option not in busy]
        return scene.change(slot, self.dice.pick(free)) if free else None

    def _without(self, scene: _Scene, slot: str) -> _Scene | None:
        if slot == "truth":  # nobody does it
            return scene.change("negated", True) if len(scene.events) == 1 else None
        if slot == "event":
            return replace(scene, events=scene.events[:1]) if len(scene.events) == 2 else None
        return scene.change(slot, ()) if (scene.place if slot == "place" else scene.first.mood) else None

    def _general(self, scene: _Scene, slot: str) -> _Scene | None:
        """A person for the chef, a vegetable for the onion."""
        if slot == "agent":
            return scene.change("agent", ("person", "human"))
        return None if scene.first.meeting else scene.change("thing", (self.domain.kind,))

    def _swapped(self, scene: _Scene, _slot: str) -> _Scene | None:
        """The same words, with the roles the other way round."""
        first = scene.first
        if len(scene.events) == 2:
            second = scene.events[1]
            return replace(scene, events=(replace(first, agent=second.agent), replace(second, agent=first.agent)))
        return replace(scene, events=(replace(first, agent=first.thing, thing=first.agent),)) if first.meeting else None


# What an edit takes off a similarity of 5.
_PENALTIES = (
    ("swapped agent", 2.0),
    ("swapped agent", 2.0),
    ("other agent", 1.4),
    ("general agent", 0.6),
    ("other verb", 1.8),
    ("other thing", 1.6),
    ("general thing", 0.7),
    ("other count", 1.1),
    ("other mood", 1.2),
    ("no mood", 0.4),
    ("other place", 0.9),
    ("no place", 0.5),
    ("no truth", 2.4),
    ("no event", 1.2),
)


def similarity_pairs() -> DatasetDict:
    """Sentence pairs with a similarity from 0 to 5: `sentence1`, `sentence2`, `score`. Synthetic."""
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "score": Value("float64")})
    return make_splits(lambda split: _similarity_rows(_World(split, Dice(SEEDS[split]))), features)


def _similarity_rows(world: _World) -> list[dict[str, Any]]:
    dice = world.dice

    def draw(index: int) -> dict[str, Any] | None:
        world.move()
        scene, style = world.scene(), world.style()
        edits = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, -1, -1)[index % 14]
        other, score = _edited(world, scene, edits) if edits >= 0 else _another(world)
        if other is None:
            return None
        # Wording is no hint: what means the same is mostly said anew, what doesn't is mostly said with the same words.
        second = world.restyle(style) if dice.chance(0.8 if score > 4 else 0.35) else style
        return {"sentence1": _say(scene, style), "sentence2": _say(other, second), "score": round(score, 1)}

    return _collect(SIZES[world.split], draw, ("sentence1", "sentence2"))


def _edited(world: _World, scene: _Scene, edits: int) -> tuple[_Scene | None, float]:
    """The scene after edits of different slots, and what similarity they leave."""
    score, slots, edited = 5.0, set(), scene
    for _ in range(edits):
        kind, penalty = world.dice.pick(_PENALTIES)
        slot = kind.split()[1]
        changed = world.edit(edited, kind) if slot not in slots else None
        if changed is None:
            return None, 0.0
        edited, score = changed, max(score - penalty, 1.0)
        slots.add(slot)
    return edited, score


def _another(world: _World) -> tuple[_Scene, float]:
    """A scene with other people doing other things, in the same domain or in another."""
    domain = world.domain
    if world.dice.chance(0.6):
        world.move()
    return world.scene(), 0.7 if world.domain is domain else 0.0


# label: the edits that lead from premise to hypothesis, "<" where they lead back, "not" where both sides are negated.
# A negation reverses the direction: someone who isn't eating isn't eating in a kitchen.
_INFERENCES = {
    "entailment": ("same", "no place", "no mood", "general agent", "no event", "not same", "not < no place"),
    "neutral": (
        "< no place",
        "< no mood",
        "swapped agent",
        "< general thing",
        "< no event",
        "not other thing",
        "not no place",
    ),
    "contradiction": ("no truth", "< no truth", "no truth", "< no truth", "other mood", "< other mood", "other count"),
}


def entailment_pairs() -> DatasetDict:
    """Premises and hypotheses: `premise`, `hypothesis`, `label` (entailment, neutral, contradiction). Synthetic."""
    label = ClassLabel(names=list(_INFERENCES))
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": label})
    return make_splits(lambda split: _entailment_rows(_World(split, Dice(SEEDS[split] + 1))), features)


def _entailment_rows(world: _World) -> list[dict[str, Any]]:
    dice = world.dice

    def draw(index: int) -> dict[str, Any] | None:
        label = list(_INFERENCES)[index % 3]
        kind = dice.pick(_INFERENCES[label])
        negated, backwards = kind.startswith("not "), "< " in kind
        world.move()
        scene, style = world.scene(), world.style()
        edited = world.edit(scene, kind.removeprefix("not ").removeprefix("< "))
        if edited is None or (negated and len(scene.events) > 1):
            return None
        if negated:
            scene, edited = scene.change("negated", True), edited.change("negated", True)
        premise, hypothesis = (edited, scene) if backwards else (scene, edited)
        second = world.restyle(style) if dice.chance(0.5) else style
        return {"premise": _say(premise, style), "hypothesis": _say(hypothesis, second), "label": label}

    return _collect(SIZES[world.split], draw, ("premise", "hypothesis"))


# -- questions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Question:
    intent: int
    topic: tuple[Words, ...]  # one thing or skill, or two places
    context: Words = ()
    context_first: bool = True


def _intents(table: str, split: str) -> list[Words]:
    intents = []
    for line in table.strip().splitlines():
        known, kept = line.split("##")
        wordings = tuple(wording.strip() for wording in known.split("|"))
        intents.append(wordings if split == "train" else (*wordings[:2], kept.strip()))
    return intents


def _ask(question: _Question, wording: str, variant: int) -> str:
    names = [words[variant % len(words)] for words in question.topic]
    if len(names) == 2:
        text = wording.format(a=names[0], b=names[1])
    else:
        base, _, doing = names[0].partition("/")
        text = wording.format(x=base, xing=doing)
    context = question.context[variant % len(question.context)] if question.context else ""
    text = text[0].upper() + text[1:]
    return f"{context} {text}".strip() if question.context_first else f"{text} {context}".strip()


def duplicate_questions() -> DatasetDict:
    """Pairs of questions: `sentence1`, `sentence2`, `label` (different, duplicate; 40 % are duplicates). Synthetic."""
    label = ClassLabel(names=["different", "duplicate"])
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": label})
    return make_splits(lambda split: _question_rows(split, Dice(SEEDS[split] + 2)), features)


def _question_rows(split: str, dice: Dice) -> list[dict[str, Any]]:
    skills, things = (
        (_intents(ABOUT_SKILLS, split), _list(SKILLS[split]), 1),
        (_intents(ABOUT_THINGS, split), _list(THINGS[split]), 1),
    )
    subjects = [skills, skills, things, things, (_intents(ABOUT_TRIPS, split), _list(CITIES[split]), 2)]
    contexts = _list(CONTEXTS[split])

    def draw(index: int) -> dict[str, Any] | None:
        intents, topics, places = dice.pick(subjects)
        topic = tuple(dice.shuffled(topics)[:places])
        asked = _Question(int(dice.pick(range(len(intents)))), topic, dice.pick(contexts) if dice.chance(0.2) else ())
        variant, wording = dice.pick((0, 1)), dice.pick(intents[asked.intent])
        if index % 5 < 2:
            other, label = asked, "duplicate"
        else:
            other, label = _different(asked, len(intents), topics, contexts, dice), "different"
        wordings = intents[other.intent]
        wording2, variant2 = wording, 1 - variant if label == "duplicate" else variant
        if wording not in wordings or dice.chance(0.8 if label == "duplicate" else 0.35):
            wording2, variant2 = dice.other(wordings, wording), 1 - variant
        other = replace(other, context_first=dice.chance(0.6))
        return {
            "sentence1": _ask(asked, wording, variant),
            "sentence2": _ask(other, wording2, variant2),
            "label": label,
        }

    return _collect(SIZES[split], draw, ("sentence1", "sentence2"))


def _different(
    asked: _Question, intents: int, topics: Sequence[Words], contexts: Sequence[Words], dice: Dice
) -> _Question:
    """A question that sounds much like the one asked, with another answer."""
    kinds = [
        "intent",
        "topic",
        "both",
        "order" if len(asked.topic) == 2 else "intent",
        "context" if asked.context else "topic",
    ]
    kind = dice.pick(kinds)
    if kind == "both":
        asked, kind = replace(asked, intent=dice.other(range(intents), asked.intent)), "topic"
    if kind == "intent":
        return replace(asked, intent=dice.other(range(intents), asked.intent))
    if kind == "topic":
        return replace(asked, topic=(*asked.topic[:-1], dice.other(topics, *asked.topic)))
    if kind == "order":
        return replace(asked, topic=asked.topic[::-1])
    return replace(asked, context=dice.other(contexts, asked.context))


def make_splits(rows: Callable[[str], list[dict[str, Any]]], features: Features) -> DatasetDict:
    """All splits, with the rows that `rows(split)` makes for each."""
    return DatasetDict({split: Dataset.from_list(rows(split), features=features) for split in SIZES})
