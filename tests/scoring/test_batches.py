"""A function that adds scores to batches, in the hands of datasets, Ray and Spark: the same scores as from one call."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from commands import expected, make_rows, save, write_table
from datasets import Dataset
from pyarrow import parquet

from cross_trainer import BatchScorer
from cross_trainer.errors import DataError

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = make_rows(23)
COLUMNS = ("first", "second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMS = {
    "lists": columns_of,
    "arrays": lambda rows: {name: np.array(values) for name, values in columns_of(rows).items()},
    "pandas": pd.DataFrame,
    "arrow": pa.Table.from_pylist,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_any_form_keeps_its_columns_and_gets_scores(folder, form):
    scored = BatchScorer(folder, COLUMNS)(FORMS[form](ROWS))
    assert type(scored) is type(FORMS[form](ROWS))
    np.testing.assert_allclose(np.asarray(scored["score"]), expected(folder, ROWS), atol=1e-6)
    assert list(np.asarray(scored["id"])) == [row["id"] for row in ROWS]


def test_datasets_and_spark_take_it(folder):
    scorer = BatchScorer(folder, COLUMNS, "relevance")
    mapped = Dataset.from_list(ROWS).map(scorer, batched=True, batch_size=5)
    np.testing.assert_allclose(mapped["relevance"], expected(folder, ROWS), atol=1e-6)
    frame = pd.DataFrame(ROWS)
    parts = list(scorer.frames(iter([frame[:9], frame[9:9], frame[9:]])))
    assert [len(part) for part in parts] == [9, 0, 14]
    np.testing.assert_allclose(pd.concat(parts)["relevance"], expected(folder, ROWS), atol=1e-6)


def test_it_travels_without_its_weights(folder):
    scorer = BatchScorer(folder, COLUMNS)
    scorer(columns_of(ROWS[:2]))
    sent = pickle.dumps(scorer)
    assert len(sent) < 2_000
    np.testing.assert_allclose(pickle.loads(sent)(columns_of(ROWS))["score"], expected(folder, ROWS), atol=1e-6)


def test_several_labels_have_a_column_each(tmp_path):
    model = save(tmp_path, num_labels=3)
    scored = BatchScorer(model, COLUMNS)(columns_of(ROWS))
    found = np.stack([scored[f"score_{label}"] for label in ("no", "maybe", "yes")], axis=1)
    np.testing.assert_allclose(found, expected(model, ROWS), atol=1e-6)


def test_a_column_of_that_name_and_bad_rows_are_refused(folder):
    with pytest.raises(DataError, match=r"a column 'id' already\. Name another with score_column"):
        BatchScorer(folder, COLUMNS, "id")(columns_of(ROWS))
    with pytest.raises(DataError, match="'nothing'"):
        BatchScorer(folder, ("first", "nothing"))(columns_of(ROWS))


# -- Ray ---------------------------------------------------------------------------------------------------------------

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray isn't installed: pip install 'cross-trainer[ray]'"
)


class KillingScorer(BatchScorer):
    """A scorer whose process kills itself half-way, once: as `kill -9` would."""

    def __init__(self, model, mark):
        super().__init__(model, COLUMNS)
        self.mark, self.batches = Path(mark), 0

    def __call__(self, batch):
        self.batches += 1
        if self.batches == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


@needs_ray
def test_a_worker_that_is_killed_costs_no_row(tmp_path, folder, monkeypatch):
    import ray

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    rows = make_rows(120)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        scored = (
            ray.data.from_items(rows, override_num_blocks=12)
            .map_batches(
                KillingScorer,
                fn_constructor_args=(folder, str(tmp_path / "killed")),
                batch_size=10,
                compute=ray.data.ActorPoolStrategy(size=2),
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    np.testing.assert_allclose([row["score"] for row in scored], expected(folder, rows), atol=1e-6)


@needs_ray
def test_the_recipe_scores_a_table(tmp_path, folder):
    rows = make_rows(60)
    table = write_table(tmp_path / "pairs.parquet", rows)
    command = [sys.executable, RECIPES / "score_ray.py", table, "-o", tmp_path / "scored", "--model", folder]
    paths = os.pathsep.join([str(RECIPES.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    options = ["--columns", *COLUMNS, "--workers", "2", "--batch_size", "8", "--cpus", "0.5"]
    done = subprocess.run(
        [str(word) for word in [*command, *options]], env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr[-2000:]
    found = parquet.read_table(tmp_path / "scored").to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    np.testing.assert_allclose([row["score"] for row in found], expected(folder, rows), atol=1e-6)
