"""How half precision, 8-bit layers and `torch.compile` change a model's speed and scores.

    python recipes/benchmarks/variants.py pairs.csv --model output/stsb --columns sentence1 sentence2

All score the same pairs in one process, in turns, after a first turn to warm up and compile. Speeds are medians. Scores
are compared with those in float32: how far they are from them, Spearman's correlation, of several labels the lowest,
and how many are distinct. At the end stands the precision that "auto" has chosen on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from scipy.stats import spearmanr
from scoring import read_pairs

from cross_trainer import CrossEncoder

VARIANTS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "auto": {"dtype": "auto"},
    "int8": {"quantize": "int8"},
    "compile": {"compile": True},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="csv file of pairs, with a header")
    parser.add_argument("--model", required=True, help="a saved classifier")
    parser.add_argument("--columns", nargs=2, metavar=("FIRST", "SECOND"), help="default: the first two")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS)[1:], default=list(VARIANTS)[1:])
    options = parser.parse_args()
    pairs = read_pairs(options.file, options.columns, options.pairs)
    encoders = {name: CrossEncoder(options.model, **VARIANTS[name]) for name in ("float32", *options.variants)}
    scores = {name: encoder.predict(pairs, show_progress_bar=False) for name, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(options.rounds):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.predict(pairs, show_progress_bar=False)
            seconds[name].append(time.perf_counter() - start)
    print(f"{'':12}{'pairs/s':>9}{'times':>8}{'mean difference':>17}{'largest':>10}{'Spearman':>10}{'distinct':>10}")
    for name, values in seconds.items():
        difference = np.abs(scores[name] - scores["float32"])
        ratio = statistics.median(plain / own for plain, own in zip(seconds["float32"], values, strict=True))
        speed = len(pairs) / statistics.median(values)
        print(
            f"{name:12}{speed:9.1f}{ratio:8.2f}{difference.mean():17.1e}{difference.max():10.1e}"
            f"{correlation(scores[name], scores['float32']):10.5f}{len(np.unique(scores[name])):10}"
        )
    if "auto" in encoders:
        print(f"auto is {encoders['auto'].model.dtype}")


def correlation(scores: np.ndarray, exact: np.ndarray) -> float:
    """Spearman's correlation of scores [P] or [P, C], the lowest one of several columns."""
    columns = zip(scores.reshape(len(scores), -1).T, exact.reshape(len(exact), -1).T, strict=True)
    return min(float(spearmanr(*both).statistic) for both in columns)


if __name__ == "__main__":
    main()
