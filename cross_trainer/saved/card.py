"""The model card: README.md of a saved model, written from facts.

    write_card("output", CardFacts(name="duplicates", config=config, max_length=512))

What the facts don't hold isn't said. Texts of data sets stand in a card only where facts have examples; of files and
folders it has the last part of the name. See `readme.py` for what stays of a card that somebody has edited.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cross_trainer.saved.chat import serving_format
from cross_trainer.saved.folder import ACTIVATION_CLASSES, activation_path, has_own_labels, saved_template
from cross_trainer.saved.readme import Readme
from cross_trainer.saved.usage import Usage, usage_section

logger = logging.getLogger(__name__)

CARD = "README.md"
FIGURES = "figures"  # the folder of pictures in a model's folder
MOST_COUNTS = 20  # labels whose rows are counted in a card
_SAID = ("language", "license", "tags", "base_model", "pipeline_tag", "datasets")
_NOT_MEASURED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch")


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set.

    Attributes:
        name: "sentence-transformers/stsb", "pairs.csv", or what it is called in the run.
        rows: How many there are.
        hub_id: Its id on the Hub, if it comes from there.
        config: The configuration on the Hub.
        split: The split.
        revision: The commit on the Hub.
        is_sample: Whether `rows` are only the first ones of a stream, which were looked at.
        columns: What each column is for.
        kind: What the labels are, see `data.survey.Survey`.
        span: The lowest and the highest numeric label.
        counts: How many rows have each label.
        tokens: Tokens of a pair by percentile: {"50 %": 23, ...}.
        measured: How many pairs the percentiles are of.
        examples: A few rows, each by column, with texts that are cut.
    """

    name: str
    rows: int
    hub_id: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    is_sample: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    kind: str = "none"
    span: tuple[float, float] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    measured: int = 0
    examples: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Figure:
    """A picture in the model's folder.

    Attributes:
        path: Relative to the folder, with slashes.
        caption: What there is to see.
    """

    path: str
    caption: str

    @property
    def name(self) -> str:
        """What it is, in short."""
        return Path(self.path).stem.replace("_", " ")


@dataclass(frozen=True)
class EvaluationFacts:
    """What an evaluation of the saved model gave.

    Attributes:
        name: What the run calls it: "eval", "test", ...
        data: The set.
        metrics: By key, `<key>_low` and `<key>_high` among them where there are intervals.
        confidence: The level of the intervals.
        resamples: How many bootstrap draws they come from.
        figures: Pictures of it.
    """

    name: str
    data: DataFacts
    metrics: Mapping[str, float]
    confidence: float | None = None
    resamples: int | None = None
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class TrainingFacts:
    """How the model was trained.

    Attributes:
        loss: Its `repr`.
        arguments: By name; those that differ from their default.
        facts: Other lines by what they tell: "hardware", "duration", ...
        versions: Of packages, by name.
        figures: Pictures of it.
        losses: Of several data sets, the `repr` of each one's.
    """

    loss: str | None
    arguments: Mapping[str, Any]
    facts: Mapping[str, str]
    versions: Mapping[str, str]
    figures: Sequence[Figure] = ()
    losses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        name: The model's.
        config: Its config.
        max_length: Tokens of a pair at most; None for no limit.
        address: Where it can be loaded from: an id on the Hub, or the name of its folder.
        base_model: What it was trained from: an id on the Hub, or the name of a folder.
        base_on_hub: Whether that is an id.
        truncation: Which text of a longer pair is cut.
        is_adapter: Whether the folder holds an adapter of the base model alone.
        graded: Whether scores were trained to order the documents of a query.
        data: What it was trained on; of several data sets the first, whose loss says what a score means.
        parts: The several data sets, each by its name in the run.
        evaluations: The main one first.
        training: How it was trained.
        usage: Scores to show.
    """

    name: str
    config: Any
    max_length: int | None = None
    address: str | None = None
    base_model: str | None = None
    base_on_hub: bool = False
    truncation: str = "longest_first"
    is_adapter: bool = False
    graded: bool = False
    data: DataFacts | None = None
    parts: Mapping[str, DataFacts] = field(default_factory=dict)
    evaluations: Sequence[EvaluationFacts] = ()
    training: TrainingFacts | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def activation(self) -> str:
        """What makes scores of logits: "sigmoid", "softmax", "identity", or the class path of something else."""
        path = activation_path(self.config)
        return next((name for name, known in ACTIVATION_CLASSES.items() if known == path), path)

    @property
    def label_names(self) -> list[str]:
        """Names of the C outputs; none where transformers numbers them."""
        return (
            [str(self.config.id2label[index]) for index in range(self.config.num_labels)]
            if has_own_labels(self.config)
            else []
        )

    def with_names(self, given: Mapping[str, Any]) -> CardFacts:
        """These facts with the names that a user gives for them: "model_name", "dataset" and "dataset_args"."""
        named, config = _first(given.get("dataset")), _first(given.get("dataset_args"))
        evaluations = [
            replace(each, data=replace(each.data, name=named or each.data.name, config=config or each.data.config))
            for each in self.evaluations
        ]
        base = given.get("base_model")
        return replace(
            self,
            name=given.get("model_name", self.name),
            evaluations=evaluations,
            base_model=base or self.base_model,
            base_on_hub=self.base_on_hub or base is not None,
        )

    @property
    def task(self) -> str:
        """The Hub's name of it."""
        return "text-ranking" if self.config.num_labels == 1 else "text-classification"


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def write_card(
    folder: str | Path,
    facts: CardFacts,
    before: Readme | None = None,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md into a model's folder.

    Args:
        folder: Where the model is.
        facts: What to write.
        before: The README.md that this one follows. Default: the one that is there.
        given: What a user says: keys of the metadata, which stay in later cards, and more "tags".
    """
    path = Path(folder, CARD)
    before = Readme.read(path) if before is None else before
    if before.body and not before.is_ours:
        logger.info("%s was written by somebody else: it stays, and the card follows below.", path)
    if before.edited:
        logger.info("%s: the sections %s were edited, and stay as they are.", path, ", ".join(sorted(before.edited)))
    keys = metadata(facts)
    said = {
        key: _first(value) if key == "pipeline_tag" else value for key, value in (given or {}).items() if key in _SAID
    }
    if "tags" in said:
        more = [said["tags"]] if isinstance(said["tags"], str) else said["tags"]
        said["tags"] = list(dict.fromkeys([*before.metadata.get("tags", []), *keys["tags"], *more]))
    path.write_text(before.updated(keys, sections(facts), said), encoding="utf-8")


@contextlib.contextmanager
def never_fatal(folder: str | Path) -> Iterator[None]:
    """Let a saved model be, whatever goes wrong with its card; a warning says what."""
    try:
        yield
    except Exception:
        logger.warning("The model card in %s couldn't be written. The model is saved.", folder, exc_info=True)


def carry_card(folder: str | Path, read: Callable[[str], Path | None], facts: CardFacts) -> None:
    """Write the card of a model that is saved again, unchanged: what its card says of it stays true.

    Args:
        folder: Where the model is saved.
        read: The path of a file that lies beside the model that was loaded, by its name; None where there is none.
        facts: What is known without that card.
    """
    known = read(CARD)
    source = Readme() if known is None else Readme.read(known)
    target = Readme.read(Path(folder, CARD))
    if source.body and not source.is_ours:
        if not target.body and known is not None:
            shutil.copyfile(known, Path(folder, CARD))
        return
    if not source.body:
        write_card(folder, facts, target)
        return
    texts = {**source.sections, "usage": sections(facts)["usage"]}
    before, given = (target, source.added) if target.body else (source, {})
    Path(folder, CARD).write_text(before.updated(source.generated, texts, given), encoding="utf-8")
    for path in dict.fromkeys(re.findall(rf"\]\(({FIGURES}/[\w.-]+)\)", "".join(texts.values()))):
        picture, copy = read(path), Path(folder, path)
        if picture is not None and not (copy.exists() and copy.samefile(picture)):
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(picture, copy)


# -- metadata ----------------------------------------------------------------------------------------------------------


def metadata(facts: CardFacts) -> dict[str, Any]:
    """What the Hub reads: base model, data sets, task, and metrics as a `model-index`.

    >>> from transformers import BertConfig
    >>> metadata(CardFacts("pairs", BertConfig(num_labels=1), base_model="bert-base-uncased", base_on_hub=True))
    {'base_model': 'bert-base-uncased', 'library_name': 'sentence-transformers', 'pipeline_tag': 'text-ranking',
     'tags': ['cross-encoder', 'cross_trainer']}
    """
    from huggingface_hub import ModelCardData

    sets = [facts.data, *facts.parts.values(), *(each.data for each in facts.evaluations)]
    results = [result for each in facts.evaluations for result in _results(facts, each)]
    trained = [] if facts.training is None else [facts.training.loss, *facts.training.losses.values()]
    losses = list(dict.fromkeys(f"loss:{loss.partition('(')[0]}" for loss in trained if loss is not None))
    data = ModelCardData(
        base_model=facts.base_model if facts.base_on_hub else None,
        datasets=list(dict.fromkeys(each.hub_id for each in sets if each is not None and each.hub_id)) or None,
        library_name="peft"
        if facts.is_adapter
        else "sentence-transformers"
        if facts.task == "text-ranking"
        else "transformers",
        pipeline_tag=facts.task,
        tags=["cross-encoder", "cross_trainer", *(["generated_from_trainer"] if facts.training else []), *losses],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    keys: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return {key: value for key, value in keys.items() if value is not None}


def _results(facts: CardFacts, evaluation: EvaluationFacts) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    data = evaluation.data
    for key, value, interval in _measured(evaluation):
        if math.isfinite(value) and key != "loss" and not key.endswith("_threshold"):
            yield EvalResult(
                task_type=facts.task,
                dataset_type=data.hub_id or data.name,
                dataset_name=_set_name(evaluation),
                dataset_config=data.config,
                dataset_split=data.split,
                dataset_revision=data.revision,
                metric_type=key,
                metric_name=key.replace("_", " "),
                metric_value=value,
                metric_args=None
                if interval is None
                else {
                    "confidence": evaluation.confidence,
                    "resamples": evaluation.resamples,
                    "interval": list(interval),
                },
            )


def _measured(evaluation: EvaluationFacts) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Key, value and interval of each metric."""
    metrics = evaluation.metrics
    for key, value in metrics.items():
        bound = key.rpartition("_")
        is_bound = bound[2] in {"low", "high"} and bound[0] in metrics
        if not is_bound and key not in _NOT_MEASURED and isinstance(value, int | float):
            low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
            yield key, float(value), None if low is None or high is None else (low, high)


def _set_name(evaluation: EvaluationFacts) -> str:
    """What a set is called, with its split; what the run calls it where it has no name of its own."""
    data = evaluation.data
    split = data.split or evaluation.name
    return data.name if data.name == split else f"{data.name}, {split}"


# -- sections ----------------------------------------------------------------------------------------------------------


def sections(facts: CardFacts) -> dict[str, str]:
    """The parts of a card by name, without those that there are no facts for."""
    writers: dict[str, Callable[[CardFacts], str]] = {
        "model": _model,
        "scores": _scores,
        "usage": lambda facts: usage_section(
            facts.usage,
            facts.address or facts.name,
            facts.config.num_labels,
            facts.activation,
            facts.is_adapter,
            serving_format(saved_template(facts.config)),
        ),
        "evaluation": _evaluation,
        "data": _data,
        "training": _training,
    }
    texts = {name: write(facts) for name, write in writers.items()}
    return {name: text for name, text in texts.items() if text}


def _model(facts: CardFacts) -> str:
    given = f"{facts.config.num_labels} scores" if facts.config.num_labels > 1 else "one score"
    lines = [f"A cross-encoder: it reads two texts at once and gives the pair {given}."]
    told = {
        "Base model": None
        if facts.base_model is None
        else f"`{facts.base_model}`"
        if not facts.base_on_hub
        else f"[{facts.base_model}](https://huggingface.co/{facts.base_model})",
        "Architecture": f"`{facts.config.architectures[0]}`"
        if facts.config.architectures
        else f"`{facts.config.model_type}`",
        "Task": f"`{facts.task}`",
        "Labels": ", ".join(f"`{_clean(name)}`" for name in facts.label_names) or None,
        "Longest pair": None if facts.max_length is None else f"{facts.max_length} tokens; {_CUT[facts.truncation]}",
    }
    return f"# {_clean(facts.name)}\n\n" + "\n".join(lines) + "\n\n" + _bullets(told)


_CUT = {
    "longest_first": "of a longer one, the longer text is cut",
    "only_first": "of a longer one, the first text is cut",
    "only_second": "of a longer one, the second text is cut",
}


def _scores(facts: CardFacts) -> str:
    return "\n\n".join(
        ["## What a score means", _meaning(facts) + _whose(facts), *(_bought(each) for each in facts.evaluations[:1])]
    ).strip()


def _meaning(facts: CardFacts) -> str:
    """What the model's numbers stand for, and their range."""
    count, kind, span = facts.config.num_labels, None, None
    if facts.data is not None:
        kind, span = facts.data.kind, facts.data.span
    positive = f"`{_clean(facts.label_names[0])}`" if facts.label_names else "1"
    scale = "" if span is None else f" The labels of training lie between {span[0]:g} and {span[1]:g}."
    size = "between 0 and 1" if facts.activation == "sigmoid" else "of any size"
    cases = {
        f"{count} probabilities, one for each class, between 0 and 1. They add up to 1.": facts.activation == "softmax",
        f"{count} probabilities between 0 and 1, one for each label. Several labels can hold.": (
            facts.activation == "sigmoid" and count > 1
        ),
        f"A number {size}: the higher, the more relevant the second text is to the first. The model was trained to "
        "order the documents of one query, so the number is no probability.": facts.graded,
        f"A number between 0 and 1: the probability that the label of the pair is {positive}.": (
            facts.activation == "sigmoid" and kind == "binary"
        ),
        f"A number between 0 and 1: the higher, the more the pair is what the model was trained to find.{scale}": (
            facts.activation == "sigmoid"
        ),
        f"A number of any size, on the scale of the labels.{scale}": facts.activation == "identity" and count == 1,
        f"What `{facts.activation}` makes of the model's {'logit' if count == 1 else f'{count} logits'}.": True,
    }
    return next(text for text, holds in cases.items() if holds)


def _whose(facts: CardFacts) -> str:
    """Of several data sets, whose labels the meaning is that of."""
    if not facts.parts:
        return ""
    first, *others = (f"`{_clean(name)}`" for name in facts.parts)
    return f" That holds for pairs like those of {first}; the model was also trained on {', '.join(others)}."


def _bought(evaluation: EvaluationFacts) -> str:
    """What thresholds give, where they were measured."""
    found = evaluation.metrics
    lines = []
    if math.isfinite(found.get("f1_threshold", math.nan)):
        lines.append(
            f"- Scores from **{found['f1_threshold']:.4g}** on are positive: F1 {found['f1']:.3f}, precision "
            f"{found['precision']:.3f}, recall {found['recall']:.3f}. No other threshold has a higher F1 on this set."
        )
    if math.isfinite(found.get("accuracy_threshold", math.nan)):
        lines.append(
            f"- Scores from **{found['accuracy_threshold']:.4g}** on are positive: {100 * found['accuracy']:.1f} % of "
            "the pairs are right. No other threshold has more on this set, so expect a little less elsewhere."
        )
    for key in found:
        name, _, threshold = key.partition("@")
        if name == "accuracy" and threshold and f"f1@{threshold}" in found:
            lines.append(
                f"- Scores from **{threshold}** on are positive, which was chosen beforehand: F1 "
                f"{found[f'f1@{threshold}']:.3f}, {100 * found[key]:.1f} % of the pairs are right."
            )
    return "\n".join([f"Thresholds, on {_clean(_set_name(evaluation))}:\n", *lines]) if lines else ""


def _evaluation(facts: CardFacts) -> str:
    parts = []
    for each in facts.evaluations:
        rows = [
            (
                key.replace("_", " "),
                f"{value:.4f}",
                "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
            )
            for key, value, interval in _measured(each)
        ]
        percent = "" if each.confidence is None else f"{100 * each.confidence:g} % interval"
        wide = percent and any(row[2] for row in rows)
        table = (
            _table(("metric", "value", percent), rows)
            if wide
            else _table(("metric", "value"), [row[:2] for row in rows])
        )
        told = f"{each.data.rows:,} rows."
        if wide:
            told += f" Intervals are percentiles of {each.resamples:,} bootstrap draws."
        parts += [f"### {_clean(_set_name(each))}", told, table, *_pictures(each.figures)]
    return "\n\n".join(["## Evaluation", *parts]) if parts else ""


def _data(facts: CardFacts) -> str:
    if facts.parts:
        return "\n\n".join(
            ["## Training data", *(f"### {_clean(name)}\n\n{_data_set(data)}" for name, data in facts.parts.items())]
        )
    return "" if facts.data is None else f"## Training data\n\n{_data_set(facts.data)}"


def _data_set(data: DataFacts) -> str:
    rows = f"{data.rows:,} rows."
    if data.is_sample:
        rows = f"a stream, whose first {data.rows:,} rows were looked at." if data.rows else "a stream."
    source = (
        f"[{data.hub_id}](https://huggingface.co/datasets/{data.hub_id})" if data.hub_id else f"`{_clean(data.name)}`"
    )
    details = ", ".join(
        f"{name} `{value}`"
        for name, value in (("configuration", data.config), ("split", data.split), ("revision", data.revision))
        if value
    )
    parts = [f"{source}{f' ({details})' if details else ''}: {rows}"]
    parts += (
        [_table(("column", "what it is"), [(f"`{_clean(name)}`", role) for name, role in data.columns.items()])]
        if data.columns
        else []
    )
    if data.counts:
        total = sum(data.counts.values())
        parts.append(
            _table(
                ("label", "rows", "share"),
                [(_clean(name), f"{count:,}", f"{100 * count / total:.1f} %") for name, count in data.counts.items()],
            )
        )
    elif data.span is not None:
        parts.append(f"Labels are numbers from {data.span[0]:g} to {data.span[1]:g}.")
    if data.tokens:
        parts.append(f"Tokens of a pair, of {data.measured:,} pairs that were measured:")
        parts.append(_table(tuple(data.tokens), [tuple(f"{value:,}" for value in data.tokens.values())]))
    if data.examples:
        names = list(data.examples[0])
        parts.append("Examples:")
        parts.append(
            _table(
                tuple(map(_clean, names)), [tuple(_clean(row.get(name, "")) for name in names) for row in data.examples]
            )
        )
    return "\n\n".join(parts)


def _training(facts: CardFacts) -> str:
    training = facts.training
    if training is None:
        return ""
    loss = {} if training.loss is None else {"Loss": f"`{training.loss}`"}
    loss |= {f"Loss of `{_clean(name)}`": f"`{each}`" for name, each in training.losses.items()}
    parts = ["## Training", _bullets({**loss, **training.facts}), *_pictures(training.figures)]
    if training.arguments:
        parts += [
            "### Arguments",
            _table(
                ("argument", "value"),
                [(f"`{name}`", f"`{_clean(value)}`") for name, value in training.arguments.items()],
            ),
        ]
    parts += ["### Versions", _bullets(training.versions)] if training.versions else []
    return "\n\n".join(parts)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def _bullets(told: Mapping[str, str | None]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in told.items() if value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pictures(figures: Sequence[Figure]) -> list[str]:
    return [f"![{each.name}]({each.path})\n\n{_clean(each.caption)}" for each in figures]


def _clean(text: object) -> str:
    """A text of data as one line of a table or a heading: it can't start or end anything."""
    flat = " ".join(str(text).split()).replace("<", "&lt;")
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
