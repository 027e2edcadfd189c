"""Malformed inputs over the public surface: files, models, rows, arguments. `test_malformed.py` goes through them."""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from commands import invoke, labelled, make_rows, save, write_table
from conftest import build_model, build_tokenizer
from pyarrow import parquet
from training.test_trainer import arguments, pairs
from transformers import EvalPrediction
from transformers.modeling_outputs import SequenceClassifierOutput

import cross_trainer as ct
from cross_trainer.data.trec import read_qrels, read_run
from cross_trainer.errors import ConfigurationError


@dataclass
class Place:
    """Where a case works: an empty folder, and a good model to copy or to use."""

    folder: Path
    model: str
    encoder: ct.CrossEncoder

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def subfolder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    def table(self, name: str, rows: list[dict]) -> Path:
        return write_table(self.folder / name, rows)

    def broken(self, **files: str | bytes | None) -> str:
        """The model's folder with other files: `config_json="{"`."""
        folder = self.folder / "broken"
        shutil.copytree(self.model, folder)
        for name, content in files.items():
            path = folder / name.replace("_json", ".json").replace("_safetensors", ".safetensors")
            path.unlink()
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder)

    def config(self, **entries: object) -> str:
        said = json.loads(Path(self.model, "config.json").read_text())
        return self.broken(config_json=json.dumps({**said, **entries}))

    def weights(self) -> bytes:
        return Path(self.model, "model.safetensors").read_bytes()

    def run(self, command: str, *argv: object) -> None:
        """A command, whose refusal is an error again."""
        result = invoke(command, *argv)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code:
            last = result.stderr.splitlines()[-1]
            assert last.startswith("error: "), result.stderr
            raise ConfigurationError(last.removeprefix("error: "))

    def score(self, source: Path, *argv: object) -> None:
        self.run("score", source, "-o", self.folder / "out.csv", "-m", self.model, *argv)

    def train(self, rows: object, model: object = None, **options: object) -> None:
        model = build_model() if model is None else model
        trainer = ct.CrossEncoderTrainer(
            model,
            arguments(self.folder / "run", max_steps=1, **options),
            train_dataset=rows,
            processing_class=build_tokenizer(),
        )
        trainer.train()

    def train_file(self, source: object, *argv: object) -> None:
        self.run("train", "--dataset", source, "--model", self.model, "--output_dir", self.folder / "run", *argv)


Case = Callable[[Place], object]
HEADER = "first,second\n"
GOOD = HEADER + "a man,a dog\n"


def scoring(name: str, content: str | bytes, *argv: object) -> Case:
    return lambda place: place.score(place.file(name, content), *argv)


def loading(**files: str | bytes | None) -> Case:
    return lambda place: ct.CrossEncoder(place.broken(**files))


def configured(**entries: object) -> Case:
    return lambda place: ct.CrossEncoder(place.config(**entries))


def predicting(pairs: object, **options: object) -> Case:
    return lambda place: place.encoder.predict(pairs, **options)


def training(labels: list[object]) -> Case:
    """Rows with these labels below good ones."""
    good = [("a cat", "a dog", 1.0), ("a man", "an onion", 0.0)]
    return lambda place: place.train([*good, *[("a cat", "a dog", label) for label in labels]])


def late(place: Place) -> Path:
    """A jsonl whose row in line 70,001 lacks a text."""
    line = b'{"first": "a", "second": "b"}\n'
    return place.file("late.jsonl", line * 70_000 + b'{"first": "a"}\n' + line)


def as_parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    parquet.write_table(table, target)
    return target.getvalue()


def cut_parquet(place: Place) -> Path:
    return place.file("cut.parquet", as_parquet(pa.Table.from_pylist(make_rows(50)))[:-40])


def hole_in_parquet(place: Place) -> Path:
    content = as_parquet(pa.Table.from_pylist(make_rows(50)))
    return place.file("hole.parquet", content[:20] + bytes(380) + content[400:])


def typed_parquet(place: Place, values: pa.Array) -> Path:
    return place.file("typed.parquet", as_parquet(pa.table({"first": pa.array(["a"] * len(values)), "second": values})))


def twice_parquet(place: Place) -> Path:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    return place.file("twice.parquet", as_parquet(table))


def rank(place: Place, queries: str, corpus: str, candidates: str | None = None) -> None:
    argv = [place.file("queries.jsonl", queries), place.file("corpus.jsonl", corpus)]
    if candidates is not None:
        argv += ["--candidates", place.file("candidates.trec", candidates)]
    place.run("rank", *argv, "-o", place.folder / "out.trec", "-m", place.model)


def loss_of(loss: object, logits: object, labels: object) -> object:
    return loss(SequenceClassifierOutput(logits=torch.as_tensor(logits)), torch.as_tensor(labels))


def measure(metrics: object, logits: object, labels: object) -> object:
    return metrics(EvalPrediction(np.asarray(logits), np.asarray(labels)))


Q, D = '{"id": "q", "text": "a"}\n', '{"id": "d", "text": "b"}\n'
FILES: dict[str, Case] = {
    "quote that never closes": scoring("in.csv", HEADER + 'a,"b\nc,d\n'),
    "quote within a field": scoring("in.csv", HEADER + 'a,"b" c\n'),
    "field too many": scoring("in.csv", GOOD + "a,b,c\n"),
    "csv without a header": scoring("in.csv", ""),
    "header alone, of one column": scoring("in.csv", "first\nx\n"),
    "column name twice, csv": scoring("in.csv", "text,text\na,b\n"),
    "column name twice, parquet": lambda place: place.score(twice_parquet(place)),
    "last line cut, jsonl": scoring("in.jsonl", '{"first": "a", "second": "b"}\n{"first": "a", "sec'),
    "array, jsonl": scoring("in.jsonl", '[{"first": "a", "second": "b"}]\n'),
    "empty jsonl": lambda place: place.train_file(place.file("in.jsonl", "")),
    "deep JSON": scoring("in.jsonl", '{"first": "a", "second": "b", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
    "lone surrogate, jsonl": scoring("in.jsonl", '{"first": "a", "second": "\\ud800"}\n'),
    "lone surrogate in a column that is kept": scoring("in.jsonl", '{"first": "a", "second": "b", "x": "\\ud800"}\n'),
    "NaN as a text, jsonl": scoring("in.jsonl", '{"first": "a", "second": NaN}\n'),
    "null as a text, jsonl": scoring("in.jsonl", '{"first": "a", "second": "b"}\n{"first": null, "second": "b"}\n'),
    "numbers as texts, jsonl": scoring("in.jsonl", '{"first": 1, "second": 2}\n'),
    "huge number, jsonl": scoring("in.jsonl", '{"first": "a", "second": "b", "x": ' + "9" * 5000 + "}\n"),
    "key missing in line 70,001": lambda place: place.score(late(place)),
    "UTF-16": scoring("in.csv", GOOD.encode("utf-16")),
    "Latin-1": scoring("in.csv", HEADER.encode() + b"caf\xe9,x\n"),
    "parquet cut short": lambda place: place.score(cut_parquet(place)),
    "hole in a parquet": lambda place: place.score(hole_in_parquet(place)),
    "text called parquet": scoring("in.parquet", GOOD),
    "empty parquet file": scoring("in.parquet", b""),
    "numbers as texts, parquet": lambda place: place.score(typed_parquet(place, pa.array([1, 2]))),
    "dates as texts, parquet": lambda place: place.score(typed_parquet(place, pa.array([0], pa.date32()))),
    "bytes as texts, parquet": lambda place: place.score(typed_parquet(place, pa.array([b"a"]))),
    "gz that isn't": scoring("in.csv.gz", GOOD),
    "gz cut short": scoring("in.csv.gz", gzip.compress(GOOD.encode() * 500)[:-20]),
    "gz without its name": scoring("in.csv", gzip.compress(GOOD.encode())),
    "unknown ending": scoring("in.xlsx", GOOD),
    "folder for a file": lambda place: place.score(place.subfolder("in.csv")),
    "no file": lambda place: place.score(place.folder / "none.csv"),
    "folder without splits": lambda place: place.train_file(place.subfolder("x")),
    "label that is no number, late": lambda place: place.train_file(
        place.file("in.csv", "a,b,label\n" + "x,y,1\n" * 50 + "x,y,maybe\n")
    ),
    "empty label field": lambda place: place.run(
        "evaluate", place.model, place.file("in.csv", "a,b,label\nx,y,1\nx,y,\n")
    ),
    "unknown split": lambda place: place.train_file(place.file("in.csv", "a,b,label,split\nx,y,1,tarin\n")),
    "YAML that is a list": lambda place: place.run("train", place.file("x.yaml", "- a\n- b\n")),
    "YAML that is broken": lambda place: place.run("train", place.file("x.yaml", "a: [1, 2\nb: {")),
    "YAML with a tab and NUL": lambda place: place.run("train", place.file("x.yaml", b"a:\t\0\n")),
    "YAML with an unknown argument": lambda place: place.run("train", place.file("x.yaml", "num_train_epoch: 2\n")),
    "YAML with a nested value": lambda place: place.run("train", place.file("x.yaml", "learning_rate: {a: 1}\n")),
    "YAML that isn't there": lambda place: place.run("train", place.folder / "x.yaml"),
    "qrels with words for grades": lambda place: read_qrels(place.file("q.txt", "q 0 d 1\nq 0 e good\n")),
    "qrels of three fields": lambda place: read_qrels(place.file("q.txt", "q d 1\n")),
    "qrels in Latin-1": lambda place: read_qrels(place.file("q.txt", b"q 0 caf\xe9 1\n")),
    "run with a score of nan": lambda place: read_run(place.file("r.txt", "q Q0 d 1 nan tag\n")),
    "candidates of a cut run": lambda place: rank(place, Q, D, "q Q0 d 1 2.0 t\nq Q0\n"),
    "candidate that isn't there": lambda place: rank(place, Q, D, "q Q0 other 1 2.0 t\n"),
    "document id twice": lambda place: rank(place, Q, D + D),
    "id that is null": lambda place: rank(place, '{"id": null, "text": "a"}\n', D),
    "id with a space": lambda place: rank(place, '{"id": "q 1", "text": "a"}\n', D),
    "lone surrogate in a corpus": lambda place: rank(place, Q, '{"id": "d", "text": "\\udfff"}\n'),
    "empty corpus": lambda place: rank(place, Q, ""),
}


def larger_tokenizer(place: Place) -> str:
    """A tokenizer.json whose vocabulary is larger than the model's."""
    said = json.loads(Path(place.model, "tokenizer.json").read_text())
    vocabulary = said["model"]["vocab"]
    vocabulary |= {f"word{index}": len(vocabulary) + index for index in range(500)}
    return json.dumps(said)


MODELS: dict[str, Case] = {
    "weights cut short": lambda place: ct.CrossEncoder(place.broken(model_safetensors=place.weights()[:-500])),
    "weights of zeros": loading(model_safetensors=bytes(1000)),
    "weights that are empty": loading(model_safetensors=b""),
    "no weights": loading(model_safetensors=None),
    "config cut short": loading(config_json='{"model_type": "bert", '),
    "config that is a list": loading(config_json="[]"),
    "config that is empty": loading(config_json=""),
    "config not in UTF-8": loading(config_json='{"model_type": "bért"}'.encode("latin-1")),
    "config without a family": loading(config_json="{}"),
    "config of another family": configured(model_type="roberta", architectures=["RobertaForSequenceClassification"]),
    "config of an unknown family": configured(model_type="berd"),
    "config of another width": configured(hidden_size=64),
    "config of a generator": configured(architectures=["BertForMaskedLM"]),
    "config with a text for a number": configured(hidden_size="wide"),
    "config with a negative size": configured(num_hidden_layers=-1),
    "config with id2label of texts": configured(id2label={"one": "yes"}),
    "no config": loading(config_json=None),
    "tokenizer cut short": loading(tokenizer_json='{"version": "1.0", "model": {'),
    "no tokenizer": loading(tokenizer_json=None, tokenizer_config_json=None),
    "tokenizer_config cut short": loading(tokenizer_config_json='{"pad_token'),
    "config of a smaller vocabulary": configured(vocab_size=20),
    "another model's tokenizer": lambda place: ct.CrossEncoder(place.broken(tokenizer_json=larger_tokenizer(place))),
    "file for a model": lambda place: ct.CrossEncoder(str(place.file("model.bin", "x"))),
    "config cut short, by a command": lambda place: place.run("template", place.broken(config_json="{")),
    "weights cut short, by a command": lambda place: place.run(
        "score",
        place.file("in.csv", GOOD),
        "-o",
        place.folder / "out.csv",
        "-m",
        place.broken(model_safetensors=place.weights()[:-500]),
    ),
    "weights cut short, exported": lambda place: place.run(
        "export", place.broken(model_safetensors=place.weights()[:-500]), "--to", "onnx", "-o", place.folder / "x"
    ),
    "weights cut short, trained on": lambda place: place.train(
        pairs(), place.broken(model_safetensors=place.weights()[:-500])
    ),
}
ROWS: dict[str, Case] = {
    "strings instead of pairs": predicting(["a cat", "a dog", "a bird"]),
    "one string": predicting("a cat"),
    "pairs of one text": predicting([("a cat",)]),
    "pairs of four texts": predicting([("a", "b", "c", "d")]),
    "None in a pair": predicting([("a", "b"), ("a", None)]),
    "number in a pair": predicting([("a", 3.5)]),
    "nan in a pair": predicting([("a", math.nan)]),
    "bytes in a pair": predicting([("a", b"b")]),
    "list in a pair": predicting([("a", ["b"])]),
    "lone surrogate in a pair": predicting([("a", "b"), ("a", "\ud800")]),
    "dictionaries of other keys": predicting([{"x": "a", "y": "b"}, {"x": "a"}]),
    "None for pairs": predicting(None),
    "negative batch size": predicting([("a", "b")], batch_size=-1),
    "unknown activation": predicting([("a", "b")], activation="softmaxx"),
    "rank without documents of text": lambda place: place.encoder.rank("a", [1, 2]),
    "rank a query of None": lambda place: place.encoder.rank(None, ["a"]),
    "rank one string of documents": lambda place: place.encoder.rank("a", "documents"),
    "negative top_k": lambda place: place.encoder.rank("a", ["b"], top_k=-1),
    "labels of nan": training([math.nan]),
    "labels of infinity": training([math.inf]),
    "labels of texts among numbers": training(["yes"]),
    "labels of None": training([None]),
    "labels nested": training([[[1.0]]]),
    "labels ragged": lambda place: place.train([("a", "b", [1.0, 0.0]), ("a", "b", [1.0])]),
    "empty data set": lambda place: place.train([]),
    "all texts empty": lambda place: place.train([("", "", 1.0), ("", "", 0.0)]),
    "texts of None": lambda place: place.train([("a", "b", 1.0), (None, "b", 0.0)]),
    "texts of numbers": lambda place: place.train([(1, 2, 1.0), (3, 4, 0.0)]),
    "a generator for rows": lambda place: place.train(("a", "b", 1.0) for _ in range(3)),
    "a string for rows": lambda place: place.train("pairs.csv"),
    "rows of different keys": lambda place: place.train(
        [{"a": "x", "b": "y", "label": 1.0}, {"a": "x", "c": "y", "label": 0.0}]
    ),
    "documents and labels of other lengths": lambda place: place.train(
        [
            {"query": "a", "documents": ["b", "c"], "labels": [1, 0]},
            {"query": "a", "documents": ["b"], "labels": [1, 0]},
        ]
    ),
    "lone surrogate in training": lambda place: place.train([("a", "b", 1.0), ("a", "\udc00", 0.0)]),
    "collator: rows without a column": lambda place: ct.PairCollator(build_tokenizer(), columns=("a", "b"))(
        [{"a": "x", "c": "y"}]
    ),
    "collator: no rows": lambda place: ct.PairCollator(build_tokenizer())([]),
    "collator: None in a text": lambda place: ct.PairCollator(build_tokenizer())([{"a": "x", "b": None}]),
    "collator: strings for rows": lambda place: ct.PairCollator(build_tokenizer())(["a", "b"]),
    "collator: ragged labels": lambda place: ct.PairCollator(build_tokenizer())(
        [{"a": "x", "b": "y", "label": [1.0, 0.0]}, {"a": "x", "b": "y", "label": [1.0]}]
    ),
    "mining an empty set": lambda place: ct.mine_hard_negatives([], ["a"]),
    "mining a corpus of None": lambda place: ct.mine_hard_negatives([("a", "b")], ["b", None, "c", "d", "e"]),
    "mining from an empty corpus": lambda place: ct.mine_hard_negatives([("a", "b")], []),
    "mining from a string": lambda place: ct.mine_hard_negatives([("a", "b")], "corpus"),
    "mining pairs of numbers": lambda place: ct.mine_hard_negatives([(1, 2)], ["a", "b"]),
    "grouping rows without labels": lambda place: ct.group_by_query([{"query": "a", "document": "b"}]),
}
ARGUMENTS: dict[str, Case] = {
    "max_length below zero": lambda place: ct.PairCollator(build_tokenizer(), max_length=-5),
    "max_length of a text": lambda place: ct.CrossEncoder(place.model, max_length="long"),
    "truncation unknown": lambda place: ct.PairCollator(build_tokenizer(), truncation="middle"),
    "template without placeholders": lambda place: ct.PairCollator(build_tokenizer(), template="hello"),
    "template with an unknown placeholder": lambda place: ct.PairCollator(
        build_tokenizer(), template="{query} {document} {title}"
    ),
    "template with an open brace": lambda place: ct.PairCollator(build_tokenizer(), template="{query} {document"),
    "a name for a tokenizer": lambda place: ct.PairCollator("a tokenizer"),
    "num_labels of zero": lambda place: ct.CrossEncoder(place.model, num_labels=0),
    "batch size of zero": lambda place: place.encoder.predict([("a", "b")], batch_size=0),
    "score: max_tokens below zero": lambda place: place.score(place.file("in.csv", GOOD), "--max-tokens", "-3"),
    "loss: logits of two labels": lambda place: loss_of(ct.BinaryCrossEntropyLoss(), torch.zeros(4, 2), torch.zeros(4)),
    "loss: fewer labels than logits": lambda place: loss_of(ct.MSELoss(), torch.zeros(4, 1), torch.zeros(3)),
    "loss: label beyond the classes": lambda place: loss_of(
        ct.CrossEntropyLoss(), torch.zeros(2, 3), torch.tensor([0, 3])
    ),
    "loss: a list's labels flat": lambda place: loss_of(ct.LambdaLoss(), torch.zeros(4, 1), torch.zeros(4)),
    "loss: texts": lambda place: ct.MSELoss()("logits", "labels"),
    "loss: margins of three documents": lambda place: loss_of(ct.MarginMSELoss(), torch.zeros(4, 1), torch.zeros(3, 2)),
    "loss: sigma of zero": lambda place: ct.RankNetLoss(sigma=0.0),
    "loss: temperature below zero": lambda place: ct.KLDivergenceLoss(temperature=-1.0),
    "metrics: fewer labels than logits": lambda place: measure(ct.binary_metrics(), np.zeros(4), np.zeros(3)),
    "metrics: labels beyond 0 and 1": lambda place: measure(ct.binary_metrics(), np.zeros(4), np.arange(4)),
    "metrics: labels of texts": lambda place: measure(ct.correlation_metrics(), np.zeros(2), np.array(["a", "b"])),
    "metrics: a class beyond the logits": lambda place: measure(
        ct.multiclass_metrics(), np.zeros((2, 3)), np.array([0, 3])
    ),
    "metrics: multilabel of another width": lambda place: measure(
        ct.multilabel_metrics(), np.zeros((2, 3)), np.zeros((2, 2))
    ),
    "metrics: k of zero": lambda place: ct.ranking_metrics(k=0),
    "metrics: calibration of grades": lambda place: measure(
        ct.calibration_metrics(), np.zeros((4, 1)), np.array([0.5, 3.0, 1.0, 0.0])
    ),
    "calibrate: fewer labels": lambda place: ct.calibrate(build_model(), np.zeros((4, 1)), np.zeros(3)),
    "calibrate: labels of one kind": lambda place: ct.calibrate(build_model(), np.arange(4.0)[:, None], np.ones(4)),
    "calibrate: logits of nan": lambda place: ct.calibrate(
        build_model(), np.array([[math.nan], [0.0]]), np.array([0, 1])
    ),
    "calibrate: unknown threshold": lambda place: ct.calibrate(
        build_model(), np.array([[-1.0], [1.0]]), np.array([0, 1]), threshold="best"
    ),
    "train: unknown loss": lambda place: place.train_file(place.table("in.csv", labelled()), "--loss", "MSLoss"),
    "train: a loss that is code": lambda place: place.train_file(
        place.table("in.csv", labelled()), "--loss", "__import__('os').getcwd()"
    ),
    "train: batch size of zero": lambda place: place.train_file(
        place.table("in.csv", labelled()), "--per_device_train_batch_size", "0"
    ),
    "train: negative epochs": lambda place: place.train_file(
        place.table("in.csv", labelled()), "--num_train_epochs", "-1"
    ),
    "train: a text for a number": lambda place: place.train_file(
        place.table("in.csv", labelled()), "--learning_rate", "fast"
    ),
    "train: a template without placeholders": lambda place: place.train_file(
        place.table("in.csv", labelled()), "--template", "hello"
    ),
    "mine: no negatives": lambda place: place.run(
        "mine", place.table("in.csv", make_rows(5)), "-o", place.folder / "m.csv", "--num-negatives", "0"
    ),
    "evaluate: one text column": lambda place: place.run(
        "evaluate", place.model, place.file("in.csv", "text,label\na,1\n")
    ),
    "evaluate: confidence of 95": lambda place: place.run(
        "evaluate", place.model, place.table("in.csv", labelled()), "--confidence", "95"
    ),
    "report: no labels": lambda place: place.run(
        "report", place.model, place.file("in.jsonl", '{"a": "x", "b": "y"}\n'), "-o", place.folder / "r.html"
    ),
    "calibrate: no labels": lambda place: place.run(
        "calibrate", place.model, place.file("in.csv", GOOD), "-o", place.folder / "c"
    ),
    "export: unknown format": lambda place: place.run("export", place.model, "--to", "onyx", "-o", place.folder / "x"),
    "template: a model without one": lambda place: place.run("template", place.model),
}
CASES = {**FILES, **MODELS, **ROWS, **ARGUMENTS}


def prepared(folder: Path) -> tuple[str, ct.CrossEncoder]:
    model = save(folder)
    return model, ct.CrossEncoder(model)
