"""Logits are changed within the last layer: how much, against scikit-learn; of which models; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from conftest import build_model
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from torch import nn

from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError
from cross_trainer.saved.calibration import Calibration, calibrate, find_head

DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(1, 4, 600)
LABELS = (DRAW.random(600) < expit(LOGITS / 3 - 0.8)).astype(float)
CLASS_LOGITS = DRAW.normal(0, 4, (500, 3))
CLASSES = np.array([DRAW.choice(3, p=np.exp(row / 3) / np.exp(row / 3).sum()) for row in CLASS_LOGITS])
IDS = torch.tensor([[2, 50, 60, 3, 70, 80, 3]])


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.double().numpy()


class _Scores(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose decision function is its input."""

    classes_ = np.array([0, 1])

    def fit(self, *_):
        return self

    def decision_function(self, logits):
        return logits[:, 0]

    def predict(self, logits):
        return logits[:, 0] > 0

    def __sklearn_is_fitted__(self):
        return True


# -- the fit -----------------------------------------------------------------------------------------------------------


def test_one_label_is_fitted_as_sklearn_fits_platt(model):
    found = calibrate(model, LOGITS, LABELS)
    oracle = CalibratedClassifierCV(FrozenEstimator(_Scores()), method="sigmoid")
    oracle.fit(LOGITS[:, None], LABELS.astype(int))
    assert expit(found(LOGITS)) == pytest.approx(oracle.predict_proba(LOGITS[:, None])[:, 1], abs=1e-4)
    assert found.threshold == 0.5
    assert found.after["log_loss"] < found.before["log_loss"]
    assert found.rows == 600


def test_classes_get_the_temperature_with_the_lowest_loss():
    found = calibrate(build_model(3), CLASS_LOGITS, CLASSES)
    assert found.bias == 0
    assert found.activation == "softmax"
    chances = torch.tensor(CLASS_LOGITS)[None] / torch.linspace(2, 5, 301)[:, None, None]
    losses = [nn.functional.cross_entropy(each, torch.tensor(CLASSES)).item() for each in chances]
    assert found.temperature == pytest.approx(2 + np.argmin(losses) / 100, abs=0.011)
    assert found.after["log_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_several_labels_are_fitted_each_by_itself():
    logits, labels = np.stack([LOGITS, 2 * LOGITS - 3], 1), np.stack([LABELS, LABELS[::-1]], 1)
    labels[:, 1] = LABELS
    labels[5, 0] = -100
    model = build_model(2, problem_type="multi_label_classification")
    found = calibrate(model, logits, labels, threshold="f1")
    alone = calibrate(build_model(), 2 * LOGITS - 3, LABELS, threshold="f1")
    assert (found.temperature[1], found.bias[1], found.threshold[1]) == pytest.approx(
        (alone.temperature, alone.bias, alone.threshold)
    )
    assert found.temperature[1] == pytest.approx(2 * found.temperature[0], rel=0.01)
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("shift", [0, 50, -300])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_the_scale_of_logits_does_not_matter(model, shift, scale):
    found, expected = calibrate(model, LOGITS * scale + shift, LABELS), calibrate(model, LOGITS, LABELS)
    assert found(LOGITS * scale + shift) == pytest.approx(expected(LOGITS), abs=1e-4)


def test_lists_columns_and_tensors_are_read_as_pairs(model):
    expected = calibrate(model, LOGITS, LABELS)
    grid, labels = np.full((61, 10), -100.0), np.full((61, 10), -100.0)
    grid[:60], labels[:60] = LOGITS.reshape(60, 10), LABELS.reshape(60, 10)
    grid[60] = np.nan  # where there is no label, nothing is read
    assert calibrate(model, grid, labels) == expected
    assert calibrate(model, LOGITS[:, None], LABELS) == expected
    tensors = torch.tensor(LOGITS, requires_grad=True), torch.tensor(LABELS, dtype=torch.bfloat16)
    assert calibrate(model, *tensors).temperature == pytest.approx(expected.temperature, rel=1e-5)


def test_grades_count_from_a_threshold(model):
    grades = LABELS * DRAW.integers(1, 4, 600)
    assert calibrate(model, LOGITS, grades, relevance_threshold=1) == calibrate(model, LOGITS, LABELS)


def test_labels_between_0_and_1_are_expected_labels(model):
    shares = expit(LOGITS / 3 - 0.8)
    found = calibrate(model, LOGITS, shares)
    assert expit(found(LOGITS)) == pytest.approx(shares, abs=0.01)
    with pytest.raises(DataError, match="threshold='f1' needs labels of 0 and 1, and some lie between"):
        calibrate(model, LOGITS, shares, threshold="f1")


def test_labels_that_are_told_apart_have_a_finite_temperature(model):
    found = calibrate(model, [-2, -1, 1, 2], [0, 0, 1, 1])
    assert 0.1 < found.temperature < 10
    classes = calibrate(build_model(3), 9 * np.eye(3), [0, 1, 2])
    assert 1 < classes.temperature < 100


# -- the threshold -----------------------------------------------------------------------------------------------------


def counts(scores):
    positive = scores >= 0
    return (positive & (LABELS == 1)).sum(), positive.sum(), (LABELS == 1).sum()


def best_of(value):
    """The best value of any threshold, by trying each."""
    return max(value(*counts(LOGITS - threshold)) for threshold in LOGITS)


def f1(hits, predicted, positives):
    return 2 * hits / (predicted + positives)


def test_f1_and_accuracy_are_highest_at_a_half(model):
    at_f1 = calibrate(model, LOGITS, LABELS, threshold="f1")
    assert f1(*counts(at_f1(LOGITS))) == best_of(f1) > f1(*counts(calibrate(model, LOGITS, LABELS)(LOGITS)))
    found = calibrate(model, LOGITS, LABELS, threshold="accuracy")
    assert np.mean((found(LOGITS) >= 0) == LABELS) == max(np.mean((cut <= LOGITS) == LABELS) for cut in LOGITS)


@pytest.mark.parametrize("least", [0.7, 0.9])
def test_a_precision_has_the_highest_recall_and_the_other_way_round(model, least):
    hits, predicted, positives = counts(calibrate(model, LOGITS, LABELS, threshold=f"precision>={least}")(LOGITS))
    assert hits / predicted >= least
    assert hits / positives == best_of(lambda h, n, p: h / p if h / n >= least else 0)
    hits, predicted, positives = counts(calibrate(model, LOGITS, LABELS, threshold=f"recall >= {least}")(LOGITS))
    assert hits / positives >= least
    assert hits / predicted == best_of(lambda h, n, p: h / n if h / p >= least else 0)
    everything = calibrate(model, LOGITS, LABELS, threshold="recall>=1")
    assert counts(everything(LOGITS))[0] == LABELS.sum()


def test_a_threshold_that_rests_on_few_rows_is_told(model, caplog):
    calibrate(model, LOGITS, LABELS, threshold="recall>=0.5")
    assert "rests on" not in caplog.text
    calibrate(model, LOGITS, LABELS, threshold="recall>=0.01")
    assert "threshold='recall>=0.01' rests on" in caplog.text


def test_a_threshold_shifts_and_nothing_else(model):
    plain, moved = calibrate(model, LOGITS, LABELS), calibrate(model, LOGITS, LABELS, threshold="f1")
    assert moved.temperature == plain.temperature
    assert moved.before_threshold(LOGITS) == pytest.approx(plain(LOGITS))
    assert expit(plain(LOGITS)[moved(LOGITS) >= 0].min()) > moved.threshold
    assert expit(plain(LOGITS)[moved(LOGITS) < 0].max()) < moved.threshold
    assert moved.calibrated["log_loss"] == plain.after["log_loss"] < moved.after["log_loss"]


# -- the last layer ----------------------------------------------------------------------------------------------------

TINY = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 3,
}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
FAMILIES = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Electra": {"embedding_size": 32},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "DebertaV2": {},
    "MPNet": {},
    "ModernBert": {"global_attn_every_n_layers": 1},
    "XLNet": {"max_position_embeddings": None, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "Bart": {**BART, **HEADS},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "Albert": {"embedding_size": 32},
}
WITHOUT_BIAS = {"Qwen2": {"num_key_value_heads": 2}, "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4}}


def build(family, num_labels=1, **options):
    given = {name: value for name, value in {**TINY, **options}.items() if value is not None}
    config = getattr(transformers, f"{family}Config")(**given, num_labels=num_labels)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_found_whatever_its_name(family, tmp_path):
    for labels in (1, 3):
        model = build(family, labels, **FAMILIES[family])
        before = logits_of(model)
        found = calibrate(model, *((LOGITS, LABELS) if labels == 1 else (CLASS_LOGITS, CLASSES)))
        assert logits_of(model) == pytest.approx(found(before), abs=1e-6)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert logits_of(again) == pytest.approx(found(before), abs=1e-6)


@pytest.mark.parametrize("family", WITHOUT_BIAS)
def test_without_a_bias_there_is_a_temperature_alone(family, caplog):
    model = build(family, **WITHOUT_BIAS[family])
    before = logits_of(model)
    found = calibrate(model, LOGITS, LABELS)
    assert found.bias == 0
    assert logits_of(model) == pytest.approx(found(before), abs=1e-6)
    assert "has no bias, so logits are divided by a temperature alone: the log loss is" in caplog.text
    with pytest.raises(UnsupportedModelError, match="shifts logits, but the last layer 'score' has no bias"):
        calibrate(model, LOGITS, LABELS, threshold="f1")
    with pytest.raises(DataError, match="without a bias, logits must also be above and below 0"):
        calibrate(model, LOGITS + 100, LABELS)
    classes = build(family, 3, **WITHOUT_BIAS[family])
    before = logits_of(classes)
    found = calibrate(classes, CLASS_LOGITS, CLASSES)
    assert logits_of(classes) == pytest.approx(found(before), abs=1e-6)


def test_a_head_beside_adapters_is_found():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_model(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert find_head(model).name == "base_model.model.classifier.modules_to_save.default"
    before = logits_of(model)
    found = calibrate(model, LOGITS, LABELS)
    assert logits_of(model) == pytest.approx(found(before), abs=1e-6)
    adapted = get_peft_model(build_model(), LoraConfig(target_modules=["query", "classifier"]))
    with torch.no_grad():
        adapted.base_model.model.classifier.lora_B.default.weight.fill_(0.3)
    with pytest.raises(UnsupportedModelError, match="Merge adapters of the last layer first"):
        calibrate(adapted, LOGITS, LABELS)


def test_only_the_last_layer_and_the_activation_change(model):
    model.config.problem_type = "regression"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    calibrate(model, LOGITS, LABELS)
    assert model.training
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]
    assert model.config.problem_type is None
    assert model.config.sentence_transformers == {"activation_fn": "torch.nn.modules.activation.Sigmoid"}


@pytest.mark.parametrize(("scale", "warned"), [(1, False), (30, True)])
def test_rounding_in_half_precision_is_told(scale, warned, caplog):
    model = build_model().to(torch.bfloat16)
    with torch.no_grad():
        model.classifier.weight.mul_(0.1)
    calibrate(model, LOGITS / scale - scale, LABELS)
    assert ("is in torch.bfloat16, and rounding moves logits by up to" in caplog.text) == warned


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [nn.Tanh(), nn.Sigmoid(), nn.LayerNorm(1)])
def test_a_head_that_is_not_linear_is_refused(model, last):
    model.classifier = nn.Sequential(model.classifier, last)
    before = logits_of(model)
    message = "'classifier.0' is linear, but logits don't follow its outputs"
    with pytest.raises(UnsupportedModelError, match=message):
        calibrate(model, LOGITS, LABELS)
    assert logits_of(model) == pytest.approx(before)


def test_a_head_without_a_linear_layer_is_refused(model):
    model.classifier = nn.Bilinear(32, 32, 1)
    with pytest.raises(UnsupportedModelError, match="a last linear layer with 1 outputs, and there is none"):
        calibrate(model, LOGITS, LABELS)


def test_shared_weights_are_refused(model):
    model.twin = nn.Linear(32, 1)
    model.twin.weight = model.classifier.weight
    with pytest.raises(UnsupportedModelError, match=r"classifier\.weight and twin\.weight are one"):
        calibrate(model, LOGITS, LABELS)


def with_value(value, row=3):
    changed = LOGITS.copy()
    changed[row] = value
    return changed


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS, np.ones(600), "needs rows of both kinds, but all 600 labels are 1"),
        (LOGITS, np.full(600, -100), "there is no label"),
        (with_value(np.nan), LABELS, r"1 of 600 rows have logits that are NaN or infinite\. The first is row 3: nan"),
        (with_value(np.inf), LABELS, "The first is row 3: inf"),
        (LOGITS, LABELS * 3, r"the label is 3, outside \[0, 1\]. For grades, pass relevance_threshold=1"),
        (LOGITS, LABELS - 1, r"the label is -1, outside"),
        (np.zeros(600), LABELS, "All 600 logits are the same"),
        (-LOGITS, LABELS, "Scores don't rise with the labels: the best slope is -"),
    ],
)
def test_rows_that_cannot_be_calibrated_on(model, logits, labels, message):
    before = logits_of(model)
    with pytest.raises(DataError, match=message):
        calibrate(model, logits, labels)
    assert logits_of(model) == pytest.approx(before)


def test_classes_that_cannot_be_calibrated_on():
    model = build_model(3)
    with pytest.raises(DataError, match="needs rows of several classes, but all 500 labels are class 2"):
        calibrate(model, CLASS_LOGITS, np.full(500, 2))
    with pytest.raises(DataError, match="Row 0: the label is 7, and classes count from 0 to 2"):
        calibrate(model, CLASS_LOGITS, np.full(500, 7))
    with pytest.raises(DataError, match=r"Row 0: the label is 0\.5"):
        calibrate(model, CLASS_LOGITS, np.full(500, 0.5))
    with pytest.raises(ConfigurationError, match="threshold='f1' is for one label or several"):
        calibrate(model, CLASS_LOGITS, CLASSES, threshold="f1")
    with pytest.raises(ConfigurationError, match="relevance_threshold is for one label, and the model has 3"):
        calibrate(model, CLASS_LOGITS, CLASSES, relevance_threshold=1)


def test_shapes_that_do_not_match(model):
    with pytest.raises(ConfigurationError, match=r"logits \(600,\) and labels \(599,\) don't match"):
        calibrate(model, LOGITS, LABELS[1:])
    with pytest.raises(ConfigurationError, match=r"logits \(60, 10\) and labels \(10, 60\) don't match"):
        calibrate(model, LOGITS.reshape(60, 10), LABELS.reshape(10, 60))
    with pytest.raises(ConfigurationError, match=r"aren't those of a model with num_labels=1"):
        calibrate(model, CLASS_LOGITS, CLASSES)
    with pytest.raises(ConfigurationError, match=r"num_labels=3: expected logits \[P, 3\]"):
        calibrate(build_model(3), LOGITS, LABELS)


@pytest.mark.parametrize("threshold", ["F1", "precision", "precision>=95", "precision>0.9", "recall>=1.1", 0.5, ""])
def test_an_unknown_threshold(model, threshold):
    with pytest.raises(
        ConfigurationError, match=r'expected "f1", "accuracy", "precision>=0.95", "recall>=0.9" or None'
    ):
        calibrate(model, LOGITS, LABELS, threshold=threshold)


def test_a_precision_that_no_threshold_has(model):
    labels = LABELS.copy()
    labels[LOGITS.argmax()] = 0
    labels[LOGITS > 3] = np.arange((LOGITS > 3).sum()) % 2
    labels[LOGITS.argmax()] = 0
    with pytest.raises(
        ConfigurationError, match=r"can't be reached on these 600 rows: the highest precision is 0\.\d+, at"
    ):
        calibrate(model, LOGITS, labels, threshold="precision>=0.99")


def test_the_repr_is_the_specification():
    assert repr(Calibration(2.0, -1.0)).startswith(
        "Calibration(temperature=2.0, bias=-1.0, threshold=0.5, activation='sig"
    )
