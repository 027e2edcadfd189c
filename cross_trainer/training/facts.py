"""What a training knows for its model's card: the data, the evaluations of the saved model, the run, and pictures.

    record = RunRecord(examples=3, figures=None)
    record.keep("eval", planned, output, metrics, step, best)             # after every evaluation
    facts = record.facts(trainer, step, folder, "somebody/duplicates")    # when a model is saved

Nothing here changes a training, and of an evaluation `MOST_ROWS` rows are kept at most.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

import cross_trainer
from cross_trainer.data.collator import PairCollator, flat_pairs, read_texts
from cross_trainer.data.collections import Collection
from cross_trainer.data.columns import Columns, Rows, as_mapping, is_stream, iterate
from cross_trainer.data.pairs import Pair, encode_pairs
from cross_trainer.data.survey import Survey, text_lengths
from cross_trainer.errors import MissingDependencyError, check_whole
from cross_trainer.execution.shown import run_usage
from cross_trainer.metrics.pairs import BinaryMetrics, CorrelationMetrics, MulticlassMetrics, MultilabelMetrics
from cross_trainer.metrics.plots import Picture, Task, evaluation_pictures, learning_curve
from cross_trainer.metrics.rankings import RankingMetrics
from cross_trainer.metrics.runs import RunMetrics
from cross_trainer.saved.card import (
    FIGURES,
    MOST_COUNTS,
    CardFacts,
    DataFacts,
    EvaluationFacts,
    Figure,
    TrainingFacts,
)
from cross_trainer.saved.usage import NEUTRAL_PAIRS, Usage
from cross_trainer.training.plan import DataPlan, Plan

MOST_ROWS = 100_000  # of an evaluation, whose logits are kept for pictures
MOST_BOOTSTRAPPED = 5_000  # rows of a set whose intervals are computed for the card
RESAMPLED_ROWS = 1_000_000  # of all draws together, which take a second or two
MEASURED_PAIRS = 1_000  # whose tokens are counted
BOOTSTRAPPED = (BinaryMetrics, CorrelationMetrics, MulticlassMetrics, MultilabelMetrics, RankingMetrics, RunMetrics)
CONFIDENCE = 0.95
CUT = 120  # characters of an example
PERCENTILES = (0, 25, 50, 75, 95, 100)
VERSIONS = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "huggingface_hub", "numpy", "peft")
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)@(\w+)/")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
FILE_FORMATS = {"csv", "json", "parquet", "text", "arrow", "pandas", "generator", "xml"}
"""What datasets calls a data set that it has read from files."""

UNSAID = re.compile(
    r".*(dir|token|path|_file|repo|run_name|report_to|project|trackio).*|hub_.*|push_to.*|logging_.*|disable_tqdm|do_.*"
)
"""Arguments that say where and how a run was logged, not how the model was trained."""

ALWAYS_SAID = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)


@dataclass
class Evaluated:
    """An evaluation whose numbers and pictures a card may show.

    Attributes:
        name: What the run calls it, the prefix of its metrics.
        planned: What was evaluated on.
        step: The step whose model it was.
        metrics: Without the prefix.
        logits: As predicted; every so many rows where there were too many. None where they don't come as an array.
        labels: Likewise, as metrics take them.
        rows: How many were evaluated.
        metric: What computed them.
    """

    name: str
    planned: DataPlan
    step: int
    metrics: dict[str, float]
    logits: Any
    labels: Any
    rows: int
    metric: Any


class RunRecord:
    """What a trainer keeps for the card.

    Args:
        examples: How many rows of the training data a card may show.
        figures: Whether to draw; None for where matplotlib is installed.

    Raises:
        ConfigurationError: `examples` isn't a whole number of 0 or more.
        MissingDependencyError: Figures are asked for, and matplotlib isn't installed.
    """

    def __init__(self, examples: int, figures: bool | None) -> None:
        check_whole("card_examples", examples, lowest=0)
        has_matplotlib = importlib.util.find_spec("matplotlib") is not None
        if figures and not has_matplotlib:
            raise MissingDependencyError("card_figures=True needs matplotlib: pip install 'cross-trainer[plots]'.")
        self.examples = examples
        self.figures = has_matplotlib if figures is None else figures
        self.evaluations: list[Evaluated] = []
        self._data: dict[str, tuple[DataPlan, DataFacts]] = {}

    def keep(self, name: str, planned: DataPlan, output: Any, metric: Any, step: int, best: int | None) -> None:
        """Keep an evaluation, and of the earlier ones those of the same model and of the best one."""
        metrics = {key.removeprefix(f"{name}_"): value for key, value in (output.metrics or {}).items()}
        logits, labels = output.predictions, output.label_ids
        if not isinstance(logits, np.ndarray) or labels is None:
            logits = labels = None
        else:
            every = max(1, -(-len(logits) // MOST_ROWS))
            thinned = tuple(each[::every] for each in labels) if isinstance(labels, tuple) else labels[::every]
            logits, labels = logits[::every], thinned
        found = Evaluated(name, planned, step, metrics, logits, labels, output.num_samples, metric)
        self.evaluations = [
            each
            for each in self.evaluations
            if each.step in {step, best} and not (each.step == step and each.planned.dataset is planned.dataset)
        ]
        self.evaluations.append(found)

    def facts(self, trainer: Any, step: int, folder: Path, address: str, *, quick: bool = False) -> CardFacts:
        """What is known when a model is saved.

        Args:
            trainer: A `CrossEncoderTrainer`.
            step: The one whose model it is.
            folder: Where the model is; pictures are written there.
            address: Where it will be loaded from.
            quick: Leave out what takes time: pictures, intervals and scores.
        """
        plan: Plan | None = next(iter(trainer.plans.values()), trainer.plan)
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        config = model.config
        base, base_on_hub = base_model(config)
        data = self.data_of(trainer)
        first = next(iter(data.values()), None)
        kept: list[EvaluationFacts] = []
        figures = self.figures and not quick
        for each in self._evaluations_of(step, trainer):
            kept.append(self._evaluation(each, trainer, folder, figures=figures and not kept, quick=quick))
        collator = trainer.data_collator
        is_ours = isinstance(collator, PairCollator)
        return CardFacts(
            name=address.rpartition("/")[2],
            config=config,
            max_length=collator.length_limit if is_ours else None,
            address=address,
            base_model=base,
            base_on_hub=base_on_hub,
            truncation=collator.truncation if is_ours else "longest_first",
            is_adapter=hasattr(model, "peft_config"),
            graded=plan is not None and plan.columns.grouped,
            data=first,
            parts=data if len(data) > 1 else {},
            evaluations=kept,
            training=self._training(trainer, folder, figures) if trainer.state.log_history or data else None,
            usage=Usage() if quick or not is_ours else self._usage(trainer, model, plan),
        )

    def _evaluations_of(self, step: int, trainer: Any) -> list[Evaluated]:
        """Those of the model of a step; what was logged, where a training was resumed since."""
        kept = [each for each in self.evaluations if each.step == step]
        plan, rows = trainer.plan, trainer.eval_dataset
        if kept or plan is None or rows is None or isinstance(rows, Mapping):
            return kept
        planned = plan.for_dataset(rows)
        logged = [entry for entry in trainer.state.log_history if entry.get("step") == step and "eval_loss" in entry]
        metrics = [
            {key.removeprefix("eval_"): value for key, value in entry.items() if key != "step"} for entry in logged
        ]
        return [
            Evaluated("eval", planned, step, each, None, None, planned.labels.rows, planned.metrics)
            for each in metrics[-1:]
        ]

    def data_of(self, trainer: Any) -> dict[str, DataFacts]:
        """What is known of the training data, by its name in the run; each read once."""
        trained = trainer.training_data
        for name, (plan, planned) in trained.items():
            if name not in self._data or self._data[name][0] is not planned:
                self._data[name] = planned, data_facts(planned, name, plan, self.examples)
        return {name: self._data[name][1] for name in trained}

    def _evaluation(
        self, found: Evaluated, trainer: Any, folder: Path, *, figures: bool, quick: bool
    ) -> EvaluationFacts:
        metrics, confidence = found.metrics, getattr(found.metric, "confidence", None)
        resamples = getattr(found.metric, "resamples", None)
        is_ours = isinstance(found.metric, BOOTSTRAPPED)
        small = found.logits is not None and len(found.logits) == found.rows <= MOST_BOOTSTRAPPED
        if is_ours and small and found.rows and confidence is None and not quick:
            confidence = CONFIDENCE
            resamples = min(found.metric.resamples, 500, max(200, RESAMPLED_ROWS // found.rows))
            metric: Any = dataclasses.replace(found.metric, confidence=confidence, resamples=resamples)
            metrics = {**metric(SimpleNamespace(predictions=found.logits, label_ids=found.labels)), **metrics}
        drawn: list[Figure] = []
        if figures and found.logits is not None:
            drawn = _save(folder, _pictures(found, trainer))
        data = dataclasses.replace(source_facts(found.planned.dataset, found.name), rows=found.rows)
        return EvaluationFacts(found.name, data, metrics, confidence, resamples, drawn)

    def _training(self, trainer: Any, folder: Path, figures: bool) -> TrainingFacts:
        state, best = trainer.state, trainer.state.best_global_step
        drawn: list[Figure] = []
        if figures:
            picture = learning_curve(state.log_history, trainer.args.metric_for_best_model, best)
            drawn = _save(folder, [] if picture is None else [picture])
        versions = {"Python": platform.python_version(), "cross_trainer": cross_trainer.__version__}
        versions |= {name: found for name in VERSIONS if (found := _version(name)) is not None}
        losses = {name: loss for name, plan in trainer.plans.items() if (loss := _loss(plan)) is not None}
        loss = None if trainer.plans else _loss(trainer.plan)
        return TrainingFacts(loss, _arguments(trainer.args), _run(trainer), versions, drawn, losses)

    def _usage(self, trainer: Any, model: Any, plan: Plan | None) -> Usage:
        """Scores of examples, or of pairs that no data set holds; computed by this process alone."""
        pairs = self._shown_pairs(plan, trainer)
        sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        if sharded or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # this process has a part of the weights
            return Usage(pairs)
        collator = trainer.data_collator
        return run_usage(model, collator.tokenizer, pairs, collator.length_limit, collator.truncation)

    def _shown_pairs(self, plan: Plan | None, trainer: Any) -> Sequence[Pair]:
        if not self.examples or plan is None or trainer.train_dataset is None or plan.columns.shape == "tokens":
            return NEUTRAL_PAIRS
        _, planned = next(iter(trainer.training_data.values()))
        rows = [as_mapping(row) for row in itertools.islice(iterate(planned.dataset), min(self.examples, 2))]
        pairs = [(cut(a), cut(b)) for a, b in flat_pairs(read_texts(rows, planned.columns, [""] * len(rows)))]
        return [pair for pair in pairs if all(pair)][:2] or NEUTRAL_PAIRS


# -- data --------------------------------------------------------------------------------------------------------------


def source_facts(dataset: Rows, name: str) -> DataFacts:
    """Where a data set comes from, as far as it knows: its id on the Hub or its file's name, and its split."""
    if isinstance(dataset, Collection):
        return DataFacts(dataset.name, 0)
    info, split = getattr(dataset, "info", None), getattr(dataset, "split", None)
    files = list(getattr(info, "download_checksums", None) or {})
    split_name = None if split is None else str(split)
    on_hub = next((found for file in files if (found := HUB_FILE.match(file))), None)
    if on_hub is not None:
        config = getattr(info, "config_name", None)
        config = None if config in {None, "default"} else config
        return DataFacts(on_hub[1], 0, on_hub[1], config, split_name, on_hub[2])
    known = getattr(info, "dataset_name", None)
    if known is None or known in FILE_FORMATS:
        known = files[0] if files and "://" not in files[0] else None
    return DataFacts(Path(known).name if known else name, 0, split=split_name if known else None)


def data_facts(planned: DataPlan, name: str, plan: Plan, examples: int) -> DataFacts:
    """What is known of a data set: where it comes from, and what reading it has found."""
    columns, found, dataset = planned.columns, planned.labels, planned.dataset
    roles = {column: "first text" if column == columns.query else "second text" for column in columns.names}
    if columns.grouped:
        roles |= dict(
            zip(
                columns.documents,
                ["documents"] if columns.shape == "list" else ["positive", *["negative"] * 99],
                strict=False,
            )
        )
    if columns.label is not None:
        roles[columns.label] = f"label ({found.kind})"
    if columns.num_relevant is not None:
        roles[columns.num_relevant] = "number of relevant documents"
    pairs = _sampled_pairs(dataset, columns) if isinstance(plan.collator, PairCollator) else []
    tokenizer: Any = getattr(plan.collator, "tokenizer", None)
    finite = math.isfinite(found.minimum) and found.kind in {"real", "list", "margin"}
    return dataclasses.replace(
        source_facts(dataset, name),
        rows=found.rows or (0 if is_stream(dataset) else len(dataset)),  # nobody has read rows for another collator
        is_sample=is_stream(dataset),
        columns={} if columns.shape == "tokens" else roles,
        kind=found.kind,
        span=(found.minimum, found.maximum) if finite else None,
        counts=_counts(found, plan),
        tokens=_percentiles(tokenizer, pairs),
        measured=len(pairs),
        examples=_examples(dataset, columns, examples),
    )


def _percentiles(tokenizer: Any, pairs: Sequence[Pair]) -> dict[str, int]:
    """Tokens of pairs, none of which is cut, by percentile."""
    if not pairs:
        return {}
    found = np.percentile(encode_pairs(tokenizer, pairs).lengths, PERCENTILES)
    return {f"{share} %": int(value) for share, value in zip(PERCENTILES, found, strict=True)}


def _counts(found: Survey, plan: Plan) -> dict[str, int]:
    """How many rows have each label, by its name; nothing where there are too many different ones."""
    if not found.counts or len(found.counts) > MOST_COUNTS:
        return {}
    names: Mapping[int, str] | Sequence[str] | None = found.class_names
    if found.kind == "multi":
        names = plan.config.id2label

    def named(label: Any) -> str:
        known = (
            names is not None
            and isinstance(label, int)
            and (label in names if isinstance(names, Mapping) else label < len(names))
        )
        return (
            str(names[label])
            if known and names is not None
            else f"{label:g}"
            if isinstance(label, int | float)
            else str(label)
        )

    return {
        named(label): found.counts[label]
        for label in sorted(found.counts, key=lambda label: (isinstance(label, str), label))
    }


def _sampled_pairs(dataset: Rows, columns: Columns) -> list[Pair]:
    """Up to `MEASURED_PAIRS` pairs of a data set, evenly over it where rows can be taken out of order."""
    if columns.shape == "tokens":
        return []
    if is_stream(dataset):
        rows = list(itertools.islice(iterate(dataset), MEASURED_PAIRS))
    else:
        every = max(1, len(dataset) // MEASURED_PAIRS)
        rows = [dataset[index] for index in range(0, len(dataset), every)]
    read = read_texts([as_mapping(row) for row in rows], columns, [""] * len(rows))
    return flat_pairs(read)[:MEASURED_PAIRS]


def _examples(dataset: Rows, columns: Columns, count: int) -> list[dict[str, str]]:
    """The first rows, with their texts cut."""
    if columns.shape == "tokens" or not count:
        return []
    shown = []
    for row in itertools.islice(iterate(dataset), count):
        values = {name: as_mapping(row)[name] for name in columns.names}
        label = values.get(columns.label or "")
        if columns.class_names is not None and isinstance(label, int) and 0 <= label < len(columns.class_names):
            values[str(columns.label)] = columns.class_names[label]
        shown.append(
            {
                name: cut(" / ".join(map(str, value[:2])) if isinstance(value, list) else str(value))
                for name, value in values.items()
            }
        )
    return shown


def cut(text: str) -> str:
    """A text in one line, of `CUT` characters at most."""
    flat = " ".join(text.split())
    return flat if len(flat) <= CUT else flat[: CUT - 1] + "…"


# -- pictures ----------------------------------------------------------------------------------------------------------


def _pictures(found: Evaluated, trainer: Any) -> list[Picture]:
    planned, plan = found.planned, trainer.plan
    labels = found.labels[0] if isinstance(found.labels, tuple) else found.labels
    task = _task(planned, plan, labels)
    if task is None:
        return []
    lengths = None
    if not is_stream(planned.dataset) and planned.columns.shape != "tokens" and len(found.logits) == found.rows:
        lengths = text_lengths(planned.dataset, planned.columns)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    given = getattr(found.metric, "threshold", None)
    return list(
        evaluation_pictures(
            task,
            found.logits,
            labels,
            activation=_activation(config),
            names=[str(config.id2label[index]) for index in range(config.num_labels)] if config.num_labels > 1 else (),
            threshold=found.metrics.get("f1_threshold") if given is None else given,
            lengths=lengths,
        )
    )


def _task(planned: DataPlan, plan: Plan, labels: Any) -> Task | None:
    kind = planned.labels.kind
    if planned.columns.grouped:
        return None if planned.metrics is None else "ranking"
    if kind == "multi":
        return "labels"
    if plan.num_labels > 1:
        return (
            "binary" if plan.num_labels == 2 and kind == "binary" and planned.labels.class_names is None else "classes"
        )
    known: dict[str, Task] = {"binary": "binary", "real": "numbers", "class": "numbers"}
    return known.get(kind) if labels.ndim == 1 else None


def _activation(config: Any) -> str:
    return CardFacts(name="", config=config).activation


def _save(folder: Path, pictures: Sequence[Picture]) -> list[Figure]:
    """Write pictures into a model's folder."""
    target = folder / FIGURES
    if pictures:
        target.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        picture.figure.savefig(target / f"{picture.name}.png")
    return [Figure(f"{FIGURES}/{picture.name}.png", picture.caption) for picture in pictures]


# -- the run -----------------------------------------------------------------------------------------------------------


def base_model(config: Any) -> tuple[str | None, bool]:
    """What a model was loaded from, and whether that is an id on the Hub; of a folder only its name is told."""
    name = str(getattr(config, "name_or_path", "") or "")
    if not name:
        return None, False
    on_hub = HUB_NAME.fullmatch(name) is not None and not os.path.exists(name)
    return (name, True) if on_hub else (Path(name).name, False)


def _loss(plan: Plan | None) -> str | None:
    if plan is None or plan.loss is None:
        return None
    if dataclasses.is_dataclass(plan.loss):
        return repr(plan.loss)
    return getattr(plan.loss, "__name__", type(plan.loss).__name__)  # not where it lies in memory


def _arguments(args: TrainingArguments) -> dict[str, str]:
    """Arguments that differ from their default, without where and how the run was logged; of paths only the name."""
    defaults = {each.name: each.default for each in dataclasses.fields(args) if each.default is not dataclasses.MISSING}
    given = {}
    for name in sorted({*defaults, *ALWAYS_SAID}):
        value = getattr(args, name)
        value = getattr(value, "value", value)
        changed = (value or None) != (getattr(defaults.get(name), "value", defaults.get(name)) or None)
        plain = isinstance(value, bool | int | float | str)
        if plain and (changed or name in ALWAYS_SAID) and not UNSAID.fullmatch(name):
            given[name] = Path(value).name if isinstance(value, str) and os.sep in value else str(value)
    return given


def _run(trainer: Any) -> dict[str, str]:
    """Facts about a run in words."""
    state, args = trainer.state, trainer.args
    told = {"Hardware": hardware(args.device, args.world_size)}
    runtime = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), None)
    if runtime is not None:
        told["Duration"] = _duration(runtime)
        collator = trainer.data_collator
        pairs = collator.statistics()["pairs"] * args.world_size if isinstance(collator, PairCollator) else 0
        if pairs and runtime:
            told["Speed"] = f"{pairs / runtime:,.0f} pairs per second, evaluations included"
    if state.global_step:
        passes = f"{state.epoch or 0:.4g} {'epochs' if trainer.plans else 'passes over the data'}"
        told["Steps"] = f"{state.global_step:,}, which are {passes}"
    if trainer.plans:
        told["Mixing"] = f"`{trainer.mixing}`, each update from one of {len(trainer.plans)} data sets"
    if state.best_global_step and state.best_metric is not None:
        metric = str(args.metric_for_best_model).removeprefix("eval_")
        told["Best checkpoint"] = f"step {state.best_global_step:,}, with {metric} {state.best_metric:.4f}"
    told["Seed"] = str(args.seed)
    commit = git_commit()
    return told if commit is None else {**told, "Code": f"git commit `{commit}`"}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def hardware(device: torch.device, processes: int) -> str:
    """What computed."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {os.cpu_count()} cores" if device.type == "cpu" else device.type
    if device.type == "cpu" and processes > 1:
        return f"{processes} processes on {name}"
    return f"{processes} x {name}" if processes > 1 else name


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the folder that the run was started in, with `-dirty` for changes; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):  # there is no git, or the repository is a slow one
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
