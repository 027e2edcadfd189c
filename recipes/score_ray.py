"""A table of pairs scored on all machines of a Ray cluster, or on all cores of one machine.

    python recipes/score_ray.py pairs.parquet -o scored --model output/quora --workers 4
    python recipes/score_ray.py s3://bucket/pairs/ -o s3://bucket/scored --model s3-copy/quora --workers 16 --gpus 1

Needs the extra `ray`. INPUT is a file or a folder of parquet, csv or jsonl files, and OUTPUT a folder of parquet files
with the same rows in the same order, and a column `score`. Each worker loads the model once. A batch whose worker dies
is scored again by another, so that no row is lost or there twice, with the same scores.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from demo import run

from cross_trainer import BatchScorer
from cross_trainer.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    import ray.data


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("-m", "--model", required=True, help="a name, or a folder that every machine can read")
    parser.add_argument("--columns", nargs=2, metavar=("FIRST", "SECOND"), help="default: as the model was trained")
    parser.add_argument("--workers", type=int, default=2, help="how many copies of the model score at once")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker; 0.5 lets two share one")
    parser.add_argument("--cpus", type=float, default=1, help="of each worker; reading and writing need some, too")
    parser.add_argument("--batch_size", type=int, default=1024, help="pairs that are sorted by length together")
    return parser.parse_args()


def read(path: str) -> ray.data.Dataset:
    """The rows of a file or a folder, by the ending of its name; a folder's files are parquet unless it says so."""
    import ray.data

    readers = {".csv": ray.data.read_csv, ".jsonl": ray.data.read_json, ".parquet": ray.data.read_parquet}
    ending = next((ending for ending in readers if path.endswith(ending)), None)
    if ending is None and "." in path.rstrip("/").rpartition("/")[2]:
        raise ConfigurationError(
            f"{path}: expected a name that ends with {', '.join(readers)}, or a folder of parquet."
        )
    return readers[ending or ".parquet"](path)


def main() -> None:
    """Score a table."""
    options = parse_arguments()
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("score_ray.py needs Ray: pip install 'cross-trainer[ray]'.") from error

    # 0. Workers that hold all CPUs would wait for ever for rows to be read.
    ray.init(ignore_reinit_error=True)
    total = ray.cluster_resources().get("CPU", 0)
    if options.workers * options.cpus > total - 1:
        raise ConfigurationError(
            f"--workers {options.workers} with --cpus {options.cpus:g} each leave less than one of {total:g} CPUs for "
            "reading and writing. Give fewer of either, such as --cpus 0.5."
        )

    # 1. Rows leave in the order in which they came.
    ray.data.DataContext.get_current().execution_options.preserve_order = True

    # 2. Each worker is a process that holds the model, which the first batch loads.
    scored = read(options.input).map_batches(
        BatchScorer,
        fn_constructor_args=(options.model, options.columns),
        batch_size=options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=options.cpus,
        num_gpus=options.gpus or None,
    )

    # 3. Rows are read, scored and written as a stream: none has to fit into memory.
    scored.write_parquet(options.output)
    print(f"Scored in {options.output}")


if __name__ == "__main__":
    run(main)
