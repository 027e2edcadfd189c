"""Calibration from rows: by the trainer and by CrossEncoder, for every shape of row, to the same probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainingArguments, pipeline

from cross_trainer import CrossEncoder, CrossEncoderTrainer, ListNetLoss
from cross_trainer.data.collator import PairCollator
from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError
from cross_trainer.saved.folder import TRAINED_ROWS, name_labels

PAIRS = [(first, f"{second} too") for first in SENTENCES for second in SENTENCES]
NAMES = ["no", "maybe", "yes"]


def rows_of(kind, pairs=PAIRS):
    draw = np.random.default_rng(0)
    if kind == "lists":
        groups = [pairs[start : start + 5] for start in range(0, len(pairs) - 4, 5)]
        return [
            {
                "query": part[0][0],
                "documents": [b for _, b in part][: 3 + at % 3],
                "labels": [1, 0, 0, 2, 0][: 3 + at % 3],
            }
            for at, part in enumerate(groups)
        ]
    if kind == "tuples":
        return [{"query": a, "positive": b, "negative": b[::-1]} for a, b in pairs]
    values = {
        "binary": lambda: int(draw.integers(2)),
        "real": lambda: float(draw.random()),
        "classes": lambda: NAMES[draw.integers(3)],
        "several": lambda: draw.integers(0, 2, 3).tolist(),
    }
    return [{"first": a, "second": b, "label": values[kind]()} for a, b in pairs]


def build(kind):
    model = build_model({"classes": 3, "several": 3}.get(kind, 1))
    if kind == "several":
        model.config.problem_type = "multi_label_classification"
    if kind == "classes":
        name_labels(model.config, NAMES)
    return model


def trainer_of(model, tmp_path, train=None, held_out=None, **options):
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=1, per_device_eval_batch_size=16, disable_tqdm=True
    )
    collator = PairCollator(build_tokenizer())
    return CrossEncoderTrainer(model, arguments, collator, train_dataset=train, eval_dataset=held_out, **options)


def rising(rows, model):
    """Rows whose first label isn't at odds with a random model: its head is turned around if it is."""
    try:
        CrossEncoder(build_copy(model), tokenizer=build_tokenizer()).calibrate(rows, relevance_threshold=None)
    except DataError:
        with torch.no_grad():
            model.classifier.weight.neg_()
            model.classifier.bias.neg_()
    return model


def build_copy(model):
    copied = type(model)(model.config)
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize("kind", ["binary", "real", "classes", "tuples"])
def test_the_trainer_and_the_encoder_agree(kind, tmp_path):
    rows = rows_of(kind)
    model = rising(rows, build(kind))
    other = build_copy(model)
    encoder = CrossEncoder(other, tokenizer=build_tokenizer())
    pairs = [tuple(row.values())[:2] for row in rows[:20]]
    before = encoder.predict(pairs, activation="logits")
    by_encoder = encoder.calibrate(Dataset.from_list(rows))
    by_trainer = trainer_of(model, tmp_path, held_out=rows).calibrate()
    assert by_trainer.temperature == pytest.approx(by_encoder.temperature, rel=1e-3)
    assert encoder.predict(pairs, activation="logits") == pytest.approx(by_encoder(before), abs=1e-5)
    assert by_encoder.after == by_encoder.calibrated
    assert by_encoder.after["log_loss"] < by_encoder.before["log_loss"]
    assert {"ece", "brier", "log_loss"} <= set(by_encoder.after)
    assert ("f1@0.5" in by_encoder.after) == (kind in {"binary", "tuples"})
    assert (
        "softmax" in str(encoder.activation_fn).lower()
        if kind == "classes"
        else "Sigmoid" in str(encoder.activation_fn)
    )


def test_lists_become_probabilities_in_the_same_order(tmp_path):
    rows = rows_of("lists")
    model = build("lists")
    trainer = trainer_of(model, tmp_path, rows[:5], rows[5:], compute_loss_func=ListNetLoss())
    assert model.config.problem_type == "regression"
    graded = [{**row, "labels": [min(grade, 1) for grade in row["labels"]]} for row in rows[5:]]
    with pytest.raises(DataError, match=r"the label is 2, outside \[0, 1\]. For grades, pass relevance_threshold=1"):
        trainer.calibrate()
    before = trainer.predict(graded).predictions
    try:
        found = trainer.calibrate(relevance_threshold=1, threshold="f1")
    except DataError:  # a random model may rank the wrong way round
        with torch.no_grad():
            model.classifier.weight.neg_()
        before = trainer.predict(graded).predictions
        found = trainer.calibrate(relevance_threshold=1, threshold="f1")
    after = trainer.predict(graded)
    known = after.label_ids != -100
    assert after.predictions[known] == pytest.approx(found(before)[known], abs=1e-5)
    assert (np.argsort(after.predictions[known]) == np.argsort(before[known])).all()
    assert found.after["f1@0.5"] >= found.calibrated["f1@0.5"]
    trainer.save_model(tmp_path / "saved")
    encoder = CrossEncoder(tmp_path / "saved")
    assert 0 <= encoder.predict([(SENTENCES[0], SENTENCES[1])])[0] <= 1
    assert encoder.config.problem_type is None


def test_every_tool_gives_the_calibrated_probability(tmp_path):
    import sentence_transformers

    rows = rows_of("binary")
    encoder = CrossEncoder(rising(rows, build("binary")), tokenizer=build_tokenizer())
    encoder.activation_fn = torch.nn.Identity()
    before = encoder.predict(PAIRS[:9])
    found = encoder.calibrate(rows)
    expected = 1 / (1 + np.exp(-found(before)))
    encoder.save_pretrained(tmp_path)
    inputs = [{"text": first, "text_pair": second} for first, second in PAIRS[:9]]
    shown = [each["score"] for each in pipeline("text-classification", str(tmp_path), truncation=True)(inputs)]
    assert shown == pytest.approx(expected, abs=1e-6)
    assert sentence_transformers.CrossEncoder(str(tmp_path)).predict(PAIRS[:9]) == pytest.approx(expected, abs=1e-6)
    assert CrossEncoder(tmp_path).predict(PAIRS[:9]) == pytest.approx(expected, abs=1e-6)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again.classifier.bias, encoder.model.classifier.bias)


# -- rows that were trained on -----------------------------------------------------------------------------------------


def test_rows_trained_on_are_refused(tmp_path):
    rows = rows_of("binary")
    train, held_out = rows[:100], rows[100:]
    trainer = trainer_of(build("binary"), tmp_path, train, held_out)
    trainer.save_model(tmp_path / "new")
    assert not (tmp_path / "new" / TRAINED_ROWS).exists()  # nothing was trained yet
    trainer.train()
    mixed = [*held_out[:20], *train[:5]]
    message = r"trained on 5 of 25 of these pairs, the first in row 20: \('a man is"
    with pytest.raises(DataError, match=message):
        trainer.calibrate(mixed)
    trainer.save_model(tmp_path / "trained")
    with pytest.raises(DataError, match=message):
        CrossEncoder(tmp_path / "trained").calibrate(mixed)
    swapped = [{"first": row["second"], "second": row["first"], "label": row["label"]} for row in mixed]
    with pytest.raises(DataError, match="trained on"):
        CrossEncoder(tmp_path / "trained").calibrate(swapped)


def test_earlier_trainings_are_remembered(tmp_path):
    rows = rows_of("binary")
    trainer = trainer_of(build("binary"), tmp_path, rows[:40])
    trainer.train()
    trainer.save_model(tmp_path / "first")
    second = trainer_of(str(tmp_path / "first"), tmp_path, rows[40:80])
    second.train()
    second.save_model(tmp_path / "second")
    CrossEncoder(tmp_path / "second").save_pretrained(tmp_path / "third")
    for start in (0, 40):
        with pytest.raises(DataError, match="trained on 30 of 30 of these pairs, the first in row 0"):
            CrossEncoder(tmp_path / "third").calibrate(rows[start : start + 30])
    assert np.load(tmp_path / "third" / TRAINED_ROWS).shape == (80,)


def test_rows_of_a_stream_are_known(tmp_path):
    rows = rows_of("binary")
    stream = Dataset.from_list(rows[:40]).to_iterable_dataset()
    trainer = trainer_of(build("binary"), tmp_path, stream)
    trainer.train()
    with pytest.raises(DataError, match=r"trained on \d+ of 30 of these pairs, the first in row 0"):
        trainer.calibrate(Dataset.from_list(rows[:30]).to_iterable_dataset())


def test_fit_leaves_what_was_trained_on(tmp_path):
    rows = rows_of("binary")[:30]
    encoder = CrossEncoder(build("binary"), tokenizer=build_tokenizer())
    encoder.fit(torch.utils.data.DataLoader(rows, batch_size=16), output_path=tmp_path)
    with pytest.raises(DataError, match="trained on 30 of 30"):
        CrossEncoder(tmp_path).calibrate(rows)


def test_fingerprints_can_be_left_out(tmp_path):
    rows = rows_of("binary")
    trainer = trainer_of(build("binary"), tmp_path, rows[:40], fingerprints=False)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / TRAINED_ROWS).exists()


# -- what is refused, before anything is scored ------------------------------------------------------------------------


@pytest.fixture
def scores_nothing(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(CrossEncoder, "predict", fail)


@pytest.mark.usefixtures("scores_nothing")
def test_what_is_wrong_is_said_before_scoring():
    rows = rows_of("binary")
    encoder = CrossEncoder(build("binary"), tokenizer=build_tokenizer())
    with pytest.raises(ConfigurationError, match="threshold='best'"):
        encoder.calibrate(rows, threshold="best")
    with pytest.raises(DataError, match="all 144 labels are 1"):
        encoder.calibrate([{**row, "label": 1} for row in rows])
    with pytest.raises(DataError, match="no label to compare scores with"):
        encoder.calibrate([{"first": "a", "second": "b"}])
    with pytest.raises(DataError, match="'input_ids' holds tokens"):
        encoder.calibrate([{"input_ids": [1, 2], "label": 1}, {"input_ids": [1, 2], "label": 0}])
    with pytest.raises(DataError, match=r"Column 'second', row 1: expected a text, found None"):
        encoder.calibrate([rows[0], {**rows[1], "second": None}])
    with pytest.raises(DataError, match="threshold='f1' needs labels of 0 and 1"):
        encoder.calibrate(rows_of("real"), threshold="f1")
    with pytest.raises(ConfigurationError, match="threshold='f1' is for one label or several"):
        CrossEncoder(build("classes"), tokenizer=build_tokenizer()).calibrate(rows_of("classes"), threshold="f1")
    encoder.model.classifier = torch.nn.Sequential(encoder.model.classifier, torch.nn.Tanh())
    with pytest.raises(UnsupportedModelError, match="logits don't follow its outputs"):
        encoder.calibrate(rows)


def test_scores_that_are_nan_are_named():
    rows = rows_of("binary")
    encoder = CrossEncoder(build("binary"), tokenizer=build_tokenizer())
    with torch.no_grad():
        encoder.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(
        DataError, match=r"144 of 144 rows have logits that are NaN or infinite\. The first is row 0: nan"
    ):
        encoder.calibrate(rows)


def test_the_trainer_needs_one_data_set(tmp_path):
    with pytest.raises(ConfigurationError, match=r"needs one data set of labelled rows: calibrate\(held_out\)"):
        trainer_of(build("binary"), tmp_path, rows_of("binary")).calibrate()
