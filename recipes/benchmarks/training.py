"""Training speed: this trainer, sentence-transformers' and plain `Trainer`, on the same model and the same batches.

    python recipes/benchmarks/training.py pairs.csv --model <folder of a pretrained model> --json training.json
    python recipes/benchmarks/training.py pairs.csv --model <folder> --only cross_trainer --max_tokens 2048
    python recipes/benchmarks/training.py pairs.csv --model <folder> --device cuda --bf16 --batch_size 128
    python recipes/benchmarks/training.py pairs.csv --model <folder> --before HEAD~20

The rounds of all contenders alternate in one process, because the speed of a shared machine drifts. First come two
steps of each to warm up. Figures are medians of the rounds, each over all its steps, as batches grouped by length
differ in size. The share of the peak is the arithmetic that the real tokens need (6 operations per weight and token,
plus attention) per second, compared with the machine's speed on matrix products of the model's shapes, measured in the
same run. `--before` adds this package as it was at a revision of the repository. `--only` measures the memory of one
contender alone, `--profile` shows where the time of a step goes, and `--json` writes the speeds for `chart.py`.

A GPU is waited for at the beginning and the end of a round alone, so what runs ahead of it there counts as it does in a
training; memory is the highest that was allocated on it, model and optimiser included. With flash_attn installed, in
half precision, sentence-transformers also runs as it does without padding: over flash attention, with pooling and head
as modules of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from revisions import package_at
from torch.utils.data import SequentialSampler
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

import cross_trainer
from cross_trainer import BinaryCrossEntropyLoss
from cross_trainer.data.columns import Columns, resolve_columns
from cross_trainer.data.splits import load_splits
from cross_trainer.data.survey import survey

OURS = "cross_trainer"
UNPADDED = "sentence-transformers, unpadded"
CONTENDERS = (OURS, "sentence-transformers", "Trainer", "Trainer, grouped by length")
PACKAGES: dict[str, Any] = {OURS: cross_trainer}
"""This package by the name of the contender, and as it was before."""


def wait_for(device: str) -> None:
    """Wait until a GPU has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """The time of a training, from its first step to its end, and the losses that it logs."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.losses: list[float] = []
        self.started = self.ended = 0.0
        self.steps = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        wait_for(self.device)
        self.started = time.perf_counter()

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        self.steps += 1
        if state.global_step == state.max_steps:
            wait_for(self.device)
            self.ended = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])

    @property
    def step(self) -> float:
        """Seconds of an average step, including the collation of its batch."""
        return (self.ended - self.started) / self.steps


class PeakMemory:
    """In MiB: the highest resident memory of this process in the context above what it was before, or of the GPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> PeakMemory:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.process = psutil.Process()
        self.before = self.peak = self.process.memory_info().rss
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        used = torch.cuda.max_memory_allocated() if self.device == "cuda" else self.peak - self.before
        self.mebibytes = used / 2**20


def read(path: str, steps: int, batch_size: int, named: list[str] | None = None) -> tuple[Dataset, Columns]:
    """As many shuffled pairs as the steps need, with labels scaled to [0, 1] and texts named `a` and `b`."""
    rows = load_splits(path, columns=named)["train"].shuffle(seed=0)
    columns = resolve_columns(rows, named)
    if isinstance(rows[0][columns.label], str):
        raise SystemExit(f"{path}: {columns.label!r} holds names of classes. Name texts and a number with --columns.")
    highest = max(survey(rows, columns).maximum, 1.0)
    rows = rows.select(index % len(rows) for index in range(steps * batch_size))
    names = (columns.query, columns.documents[0], columns.label)
    pairs = {new: rows[name][:] for new, name in zip(("a", "b", "label"), names, strict=True)}
    pairs["label"] = [float(label) / highest for label in pairs["label"]]
    return Dataset.from_dict(pairs), resolve_columns(Dataset.from_dict(pairs))


def load(options: argparse.Namespace) -> Any:
    """The model, with dropout as in the checkpoint or without."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32, **dropout(options)
    )


def dropout(options: argparse.Namespace) -> dict[str, float]:
    """Settings of the model's config: none, or without dropout those rates of it that there are."""
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout", "dropout")
    rates += ("mlp_dropout", "classifier_dropout", "seq_classif_dropout")
    config = AutoConfig.from_pretrained(options.model)
    return {} if options.dropout else {name: 0.0 for name in rates if hasattr(config, name)}


def standard_arguments(options: argparse.Namespace, folder: str, **more: Any) -> dict[str, Any]:
    """The same for every contender."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch_size,
        "max_steps": options.steps,
        "learning_rate": 2e-5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": options.steps if options.dropout else 1,  # a log waits for the GPU
        "bf16": options.bf16,
        "fp16": options.fp16,
        "use_cpu": options.device == "cpu",
        "dataloader_pin_memory": options.device == "cuda",
        **more,
    }


def build(name: str, options: argparse.Namespace, rows: Dataset, folder: str, clock: Clock) -> Any:
    """A contender's trainer."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if name in {"sentence-transformers", UNPADDED}:
        return build_theirs(options, rows, folder, clock, unpadded=name == UNPADDED)
    if name in PACKAGES:
        return PACKAGES[name].CrossEncoderTrainer(
            load(options),
            TrainingArguments(**standard_arguments(options, folder, train_sampling_strategy="sequential")),
            data_collator=PACKAGES[name].PairCollator(tokenizer),
            train_dataset=rows,
            compute_loss_func=PACKAGES[name].BinaryCrossEntropyLoss(),
            callbacks=[clock],
            max_tokens=options.max_tokens,
        )
    tokenized = rows.map(
        lambda row: tokenizer(row["a"], row["b"], truncation=True), batched=True, remove_columns=["a", "b"]
    )
    tokenized = tokenized.map(lambda row: {"length": len(row["input_ids"])})
    strategy = "group_by_length" if "grouped" in name else "sequential"
    return Trainer(
        load(options),
        TrainingArguments(**standard_arguments(options, folder, train_sampling_strategy=strategy)),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokenized,
        compute_loss_func=BinaryCrossEntropyLoss(),
        callbacks=[clock],
    )


def build_theirs(options: argparse.Namespace, rows: Dataset, folder: str, clock: Clock, *, unpadded: bool) -> Any:
    """sentence-transformers' trainer over the same rows in the same order."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> DefaultBatchSampler:
        return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    torch.manual_seed(0)
    if unpadded:
        model = CrossEncoder(modules=modules(options), device=options.device)
    else:
        model = CrossEncoder(options.model, num_labels=1, device=options.device, config_kwargs=dropout(options))
    return CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**standard_arguments(options, folder, batch_sampler=in_order)),
        train_dataset=rows,
        loss=losses.BinaryCrossEntropyLoss(model),
        callbacks=[clock],
    )


def modules(options: argparse.Namespace, attention: str = "flash_attention_2") -> list[Any]:
    """The model as sentence-transformers' modules, which run without padding over flash attention."""
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(
        options.model,
        transformer_task="feature-extraction",
        model_kwargs={"attn_implementation": attention},
        config_kwargs=dropout(options),
    )
    width = transformer.get_embedding_dimension()
    hidden = Dense(width, width, activation_function=torch.nn.GELU())
    scores = Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    return [transformer, Pooling(width, pooling_mode="cls"), hidden, scores]


def shapes(model: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear map in the transformer's layers."""
    layers = [
        module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".layer" in name
    ]
    return [(layer.in_features, layer.out_features) for layer in layers]


def peak(sizes: list[tuple[int, int]], tokens: int, dtype: torch.dtype, device: str) -> float:
    """Operations a second of the matrix products of a step on `tokens` tokens, forward and backward."""
    work = [
        (torch.randn(tokens, i, device=device, dtype=dtype), torch.randn(i, o, device=device, dtype=dtype))
        for i, o in sizes
    ]
    gradients = [torch.randn(tokens, o, device=device, dtype=dtype) for _, o in sizes]
    times = []
    for _ in range(7):
        wait_for(device)
        start = time.perf_counter()
        for (inputs, weight), gradient in zip(work, gradients, strict=True):
            torch.mm(inputs, weight)
            torch.mm(gradient, weight.T)
            torch.mm(inputs.T, gradient)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 6 * tokens * sum(i * o for i, o in sizes) / statistics.median(times)


def count_tokens(rows: Dataset, options: argparse.Namespace) -> tuple[float, float, float]:
    """Of an average batch: real tokens, tokens with padding, and the sum of squared lengths, for attention."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lengths = [len(ids) for ids in tokenizer(rows["a"][:], rows["b"][:], truncation=True)["input_ids"]]
    batches = [lengths[start : start + options.batch_size] for start in range(0, len(lengths), options.batch_size)]
    tokens = statistics.mean(map(sum, batches))
    padded = statistics.mean(len(batch) * max(batch) for batch in batches)
    return tokens, padded, statistics.mean(sum(length**2 for length in batch) for batch in batches)


def run(name: str, options: argparse.Namespace, rows: Dataset) -> tuple[Clock, float]:
    """One round of one contender: its clock and its peak memory."""
    clock = Clock(options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(name, options, rows, folder, clock)
        with PeakMemory(options.device) as memory:
            trainer.train()
    del trainer
    gc.collect()  # a model on the GPU counts in the next one's memory
    return clock, memory.mebibytes


def median_step(rounds: list[tuple[Clock, float]]) -> float:
    """Seconds of a step, the median of the rounds."""
    return statistics.median(clock.step for clock, _ in rounds)


def report(options: argparse.Namespace, rows: Dataset, results: dict[str, list[tuple[Clock, float]]]) -> dict[str, Any]:
    """Print the table; what of it is the contenders' is returned."""
    tokens, padded, squares = count_tokens(rows, options)
    model = load(options)
    sizes = shapes(model)
    dtype = torch.bfloat16 if options.bf16 else torch.float16 if options.fp16 else torch.float32
    best = peak(sizes, round(tokens), dtype, options.device)
    attention = 12 * squares * model.config.hidden_size * model.config.num_hidden_layers
    needed = 6 * tokens * sum(i * o for i, o in sizes) + attention
    padding = 1 - tokens / padded
    print(f"\n{options.batch_size} pairs, {tokens:.0f} real tokens per batch; {padding:.1%} of it would be padding")
    print(f"matrix products of these shapes: {best / 1e9:.0f} GFLOP/s; a step's arithmetic: {needed / 1e9:.1f} GFLOP\n")
    columns = ("ms/step", "pairs/s", "tokens/s", "of peak", "MiB", "last loss", "slower by")
    widths = (9, 9, 10, 9, 7, 11, 11)
    print(" " * 32 + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    ours, found = median_step(results[OURS]), {"of_peak": {}, "mebibytes": {}}
    for name, rounds in results.items():
        step = median_step(rounds)
        memory = found["mebibytes"][name] = max(memory for _, memory in rounds)
        share = found["of_peak"][name] = needed / step / best
        loss = rounds[-1][0].losses[-1]
        speeds = f"{step * 1e3:>9.0f}{options.batch_size / step:>9.0f}{tokens / step:>10.0f}"
        print(f"{name:<32}{speeds}{share:>9.0%}{memory:>7.0f}{loss:>11.5f}{step / ours:>10.2f}x")
    for name in ("sentence-transformers", "Trainer") if not options.dropout else ():
        if name in results:
            pairs = zip(results[OURS][0][0].losses, results[name][0][0].losses, strict=True)
            largest = max(abs(a - b) for a, b in pairs)
            print(f"\nlargest difference of a step's loss from {name}'s: {largest:.1e}")
    return found


def profile(options: argparse.Namespace, rows: Dataset) -> None:
    """Print where the time of this trainer's steps goes, by operator."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(OURS, options, rows, folder, Clock(options.device))
        with torch.profiler.profile() as measured:
            trainer.train()
    events = measured.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    print("\nshare of time  operator")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:18]:
        print(f"{event.self_cpu_time_total / total:>13.1%}  {event.key}")


def contenders(options: argparse.Namespace) -> tuple[str, ...]:
    """All that can run on this device, in this precision."""
    flash = importlib.util.find_spec("flash_attn") is not None
    unpadded = flash and options.device == "cuda" and (options.bf16 or options.fp16)
    return (*CONTENDERS, UNPADDED) if unpadded else CONTENDERS


def main() -> None:
    """Read the arguments, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="csv, tsv, jsonl or parquet file of pairs")
    parser.add_argument("--columns", nargs=3, metavar=("FIRST", "SECOND", "LABEL"), help="default: guessed")
    parser.add_argument("--model", required=True, help="name or folder of a pretrained model")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max_tokens", type=int, help="token budget of this trainer")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--fp16", action="store_true", help="mixed precision, with a scaled gradient")
    parser.add_argument("--no_dropout", dest="dropout", action="store_false", help="compare the losses step by step")
    parser.add_argument("--only", choices=(*CONTENDERS, UNPADDED), help="one contender alone, for its memory")
    parser.add_argument("--before", metavar="REVISION", help="of the repository, to be measured as well")
    parser.add_argument("--profile", action="store_true", help="where the time of this trainer's steps goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the speeds here too")
    options = parser.parse_args()
    if not Path(options.data).exists():
        parser.error(f"{options.data} does not exist")
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no NVIDIA GPU. --device cpu measures the processor.")
    rows, _ = read(options.data, options.steps, options.batch_size, options.columns)
    if options.profile:
        profile(options, rows)
        return
    names: tuple[str, ...] = contenders(options) if options.only is None else (options.only,)
    if options.before:
        before = f"before, {options.before}"
        PACKAGES[before] = package_at(options.before)
        names = (before, *names)
    results: dict[str, list[tuple[Clock, float]]] = {name: [] for name in names}
    warm_up = argparse.Namespace(**{**vars(options), "steps": 2})
    for name in names:
        run(name, warm_up, rows)
    for _ in range(options.rounds):
        for name in names:
            results[name].append(run(name, options, rows))
            print(f"{name}: {results[name][-1][0].step * 1e3:.0f} ms a step, {results[name][-1][1]:.0f} MiB")
    found = report(options, rows, results) if OURS in results else {}
    if options.json is not None:
        speeds = {name: options.batch_size / median_step(rounds) for name, rounds in results.items()}
        records = [{"work": "training", "data": options.data, "pairs_per_second": speeds, **found}]
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
