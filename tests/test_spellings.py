"""sentence-transformers' arguments: each is taken and gives its scores, or is refused by name with the way here."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from sentence_transformers import CrossEncoder as TheirEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer as TheirTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments as TheirArguments
from sentence_transformers.cross_encoder.evaluation import (
    CECorrelationEvaluator,
    CrossEncoderClassificationEvaluator,
    CrossEncoderRerankingEvaluator,
)
from torch import nn
from torch.utils.data import DataLoader
from transformers import DistilBertConfig, DistilBertForSequenceClassification, TrainingArguments

from cross_trainer.errors import ConfigurationError
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.spellings import OURS, REFUSED, Refused, spelled
from cross_trainer.training.trainer import CrossEncoderTrainer

LONG = " ".join(SENTENCES)
PAIRS = [*zip(SENTENCES, reversed(SENTENCES), strict=True), (LONG, LONG), (LONG, "a cat"), ("a cat", LONG)]


def save(folder: Path, num_labels: int) -> str:
    build_model(num_labels).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, str]:
    return {labels: save(tmp_path_factory.mktemp("model"), labels) for labels in (1, 3)}


@pytest.fixture(scope="module")
def encoder(folders) -> CrossEncoder:
    return CrossEncoder(folders[1], device="cpu")


# -- names -------------------------------------------------------------------------------------------------------------

EARLIER = {
    "CrossEncoder": "model_name automodel_args tokenizer_args tokenizer_kwargs config_args cache_dir "
    "classifier_dropout default_activation_function",
    "predict": "sentences activation_fct num_workers processing_kwargs",
    "rank": "activation_fct num_workers apply_softmax convert_to_numpy convert_to_tensor",
    "push_to_hub": "commit_description max_shard_size use_temp_dir tags",
    "CrossEncoderTrainer": "tokenizer",
}
"""What sentence-transformers 2 to 5 took, and 6 still does through its decorators and `**kwargs`."""

METHODS = {
    "CrossEncoder": (TheirEncoder.__init__, CrossEncoder.__init__),
    "predict": (TheirEncoder.predict, CrossEncoder.predict),
    "rank": (TheirEncoder.rank, CrossEncoder.rank),
    "save_pretrained": (TheirEncoder.save_pretrained, CrossEncoder.save_pretrained),
    "save": (TheirEncoder.save, CrossEncoder.save),
    "push_to_hub": (TheirEncoder.push_to_hub, CrossEncoder.push_to_hub),
    "fit": (TheirEncoder.fit, CrossEncoder.fit),
    "CrossEncoderTrainer": (TheirTrainer.__init__, CrossEncoderTrainer.__init__),
}


def names(function: object) -> set[str]:
    found = inspect.signature(function).parameters.values()
    return {each.name for each in found if each.kind not in {each.VAR_KEYWORD, each.VAR_POSITIONAL}}


@pytest.mark.parametrize("method", METHODS)
def test_every_name_is_taken_or_refused(method):
    theirs, ours = METHODS[method]
    refused = REFUSED.get("save_pretrained" if method == "save" else method, {})
    own = names(ours)
    asked = names(theirs) | set(EARLIER.get(method, "").split())
    taken = {name for name in asked if name in own or OURS.get(name) in own}
    assert asked - taken == set(refused)


@pytest.mark.parametrize("method", REFUSED)
def test_refusals_say_what_to_do(method, encoder):
    call = {"CrossEncoder": CrossEncoder, "CrossEncoderTrainer": CrossEncoderTrainer}.get(method)
    for name, refused in REFUSED[method].items():
        with pytest.raises(ConfigurationError, match=f"^{name}='something' isn't taken here: .*\\.$"):
            (call or getattr(encoder, method))(**{name: "something"})
        assert refused.harmless[0] is None


def test_unknown_names_are_type_errors(encoder, folders):
    for call in (encoder.predict, encoder.rank, encoder.save, encoder.push_to_hub, encoder.fit):
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            call("a", nonsense=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        CrossEncoder(folders[1], nonsense=1)


def test_two_names_of_one_argument():
    @spelled({"workers": Refused("leave it out.", (None, 0))})
    def predict(pairs, activation=None):
        return pairs, activation

    assert predict(inputs=1, activation_fct=2, workers=0) == (1, 2)
    for workers in (False, 2, "0"):  # False is no number of workers
        with pytest.raises(ConfigurationError, match=f"workers={workers!r} isn't taken here: leave it out."):
            predict(1, workers=workers)
    with pytest.raises(ConfigurationError, match="activation_fn is another name of activation: give one of them"):
        predict(1, activation=2, activation_fn=3)
    with pytest.raises(TypeError, match="multiple values for argument 'pairs'"):
        predict(1, sentences=2)


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (1, {"activation_fn": nn.Identity()}),
        (1, {"default_activation_function": nn.Tanh()}),
        (3, {"activation_fn": nn.Softmax(-1)}),
        (1, {"tokenizer_kwargs": {"truncation_side": "left"}}),
        (1, {"processor_kwargs": {"model_max_length": 16}}),
        (1, {"tokenizer_args": {"model_max_length": 16, "truncation_side": "left"}}),
        (1, {"model_kwargs": {"attn_implementation": "eager"}}),
        (1, {"automodel_args": {"dtype": torch.float64}}),
        (1, {"model_kwargs": {"torch_dtype": "float32", "use_safetensors": True}}),
        (1, {"model_kwargs": {"dtype": "auto", "device_map": "cpu"}, "device": None}),
        (1, {"config_kwargs": {"classifier_dropout": 0.5, "num_labels": 1}}),
        (3, {"config_args": {"problem_type": "single_label_classification"}, "activation_fn": nn.Identity()}),
        (1, {"prompts": {"ask": "who wrote "}, "default_prompt_name": "ask"}),
        (1, {"cache_folder": None, "token": None, "revision": None, "local_files_only": True}),
    ],
    ids=str,
)
def test_a_model_loaded_with_their_arguments_scores_alike(folders, labels, given):
    options = {"device": "cpu", **given}
    expected = TheirEncoder(folders[labels], **options).predict(PAIRS)
    np.testing.assert_allclose(CrossEncoder(folders[labels], **options).predict(PAIRS), expected, 1e-6, 1e-6)


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (1, {"activation_fct": nn.Tanh()}),
        (1, {"activation_fn": nn.Identity(), "num_workers": 0}),
        (3, {"apply_softmax": True}),
        (3, {"apply_softmax": True, "activation_fn": nn.Sigmoid()}),
        (3, {"convert_to_tensor": True}),
        (1, {"convert_to_tensor": True, "convert_to_numpy": True}),
        (1, {"convert_to_numpy": False}),
        (1, {"prompt": "who wrote ", "device": "cpu"}),
        (1, {"prompt_name": "ask"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[0]], ids=["many", "one"])
def test_predict_with_their_arguments(folders, labels, given, pairs):
    prompts = {"ask": "how is "}
    expected = TheirEncoder(folders[labels], device="cpu", prompts=prompts).predict(pairs, **given)
    found = CrossEncoder(folders[labels], device="cpu", prompts=prompts).predict(pairs, **given)
    assert type(found) is type(expected)
    if isinstance(expected, list):
        found, expected = torch.stack(found), torch.stack(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(found, expected, 1e-6, 1e-6)


@pytest.mark.parametrize("given", [{"activation_fn": nn.Identity()}, {"prompt": "a "}, {"prompt_name": "ask"}], ids=str)
def test_rank_with_their_arguments(folders, given):
    prompts = {"ask": "how is "}
    expected = TheirEncoder(folders[1], device="cpu", prompts=prompts).rank(LONG, SENTENCES, 5, True, **given)
    found = CrossEncoder(folders[1], device="cpu", prompts=prompts).rank(LONG, SENTENCES, 5, True, **given)
    assert [(each["corpus_id"], each["text"]) for each in found] == [(e["corpus_id"], e["text"]) for e in expected]
    np.testing.assert_allclose([each["score"] for each in found], [each["score"] for each in expected], 1e-6, 1e-6)


def test_arguments_by_their_place(folders):
    theirs, ours = TheirEncoder(folders[1], 1, 16), CrossEncoder(folders[1], 1, 16)
    np.testing.assert_allclose(ours.predict(PAIRS, 32, True), theirs.predict(PAIRS), 1e-6, 1e-6)
    with pytest.raises(ConfigurationError, match=r"device=Identity\(\).*activation=\.\.\."):
        CrossEncoder(folders[1], 1, 16, nn.Identity())
    with pytest.raises(ConfigurationError, match="batch_size='ask'"):
        ours.predict(PAIRS, "ask")
    assert list(inspect.signature(CrossEncoder.fit).parameters)[:18] == list(
        inspect.signature(TheirEncoder.fit).parameters
    )


def test_padding_side_is_kept_and_changes_no_score(folders, encoder, tmp_path):
    left = CrossEncoder(folders[1], device="cpu", tokenizer_kwargs={"padding_side": "left"})
    np.testing.assert_array_equal(left.predict(PAIRS), encoder.predict(PAIRS))
    left.save(path=tmp_path, safe_serialization=True, create_model_card=False)
    assert CrossEncoder(str(tmp_path), device="cpu").tokenizer.padding_side == "left"


def test_a_default_prompt_is_overruled(folders):
    prompts = {"ask": "who wrote "}
    with_prompt = CrossEncoder(folders[1], prompts=prompts, default_prompt_name="ask", device="cpu")
    plain = CrossEncoder(folders[1], device="cpu")
    np.testing.assert_array_equal(with_prompt.predict(PAIRS, prompt=""), plain.predict(PAIRS))
    np.testing.assert_array_equal(with_prompt.predict(PAIRS), plain.predict(PAIRS, prompt="who wrote "))
    assert with_prompt.rank("this book", SENTENCES) == plain.rank("who wrote this book", SENTENCES)


def test_prompts_are_saved(folders, tmp_path):
    CrossEncoder(folders[1], prompts={"a": "b ", "c": "d "}, default_prompt_name="a", device="cpu").save(tmp_path)
    again = CrossEncoder(str(tmp_path), prompts={"c": "e "}, default_prompt_name="c", device="cpu")
    assert (again.prompts, again.default_prompt_name) == ({"a": "b ", "c": "e "}, "c")
    assert TheirEncoder(str(tmp_path), device="cpu").prompts == {"a": "b ", "c": "d "}


def test_weights_on_a_disk(folders, encoder, tmp_path):
    parts = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "dropout": "cpu"}
    options = {"device_map": {**parts, "classifier": "cpu"}, "offload_folder": str(tmp_path)}
    offloaded = CrossEncoder(folders[1], model_kwargs=options)
    assert "disk" in offloaded.model.hf_device_map.values()
    np.testing.assert_array_equal(offloaded.predict(PAIRS), encoder.predict(PAIRS))


def test_a_new_head_by_config_kwargs(folders):
    assert CrossEncoder(folders[1], config_kwargs={"num_labels": 3}, device="cpu").predict(PAIRS).shape == (15, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_labels": 1, "config_kwargs": {"num_labels": 3}}, "num_labels=1 contradicts 3 in config_kwargs"),
        ({"max_length": 8, "tokenizer_kwargs": {"model_max_length": 9}}, "max_length=8 contradicts 9"),
        ({"dtype": "float32", "model_kwargs": {"torch_dtype": "bfloat16"}}, "contradicts dtype=torch.float32"),
        ({"device": "cpu", "model_kwargs": {"device_map": "auto"}}, r"contradicts model_kwargs\['device_map'\]"),
        ({"model_kwargs": {"config": 1}}, "pass config_kwargs"),
        ({"model_kwargs": {"file_name": "model.onnx"}}, "'file_name': 'model.onnx'}: it belongs to ONNX"),
        ({"model_kwargs": {"num_labels": 1}}, "pass num_labels to CrossEncoder"),
        ({"config_kwargs": {"dropuot": 0.1}}, "BertConfig has no such setting"),
        ({"default_prompt_name": "ask"}, r"prompt_name='ask': the model has the prompts \[\]"),
        ({"device": ["cuda:0", "cuda:1"]}, "accelerate launch"),
        ({"tokenizer": build_tokenizer(), "tokenizer_kwargs": {"truncation_side": "left"}}, "another one is given"),
    ],
    ids=str,
)
def test_contradictions_on_loading(folders, given, message):
    with pytest.raises(ConfigurationError, match=message):
        CrossEncoder(folders[1], **given)


@pytest.mark.parametrize("given", [{"revision": "main"}, {"model_kwargs": {"dtype": "auto"}}, {"cache_folder": "x"}])
def test_a_loaded_model_takes_no_arguments_of_loading(given):
    with pytest.raises(ConfigurationError, match="this one is loaded already"):
        CrossEncoder(build_model(), tokenizer=build_tokenizer(), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"apply_softmax": True}, "apply_softmax=True is for several classes"),
        ({"prompt": "a", "prompt_name": "b"}, "give one of them"),
        ({"prompt": "a", "symmetric": True}, "symmetric=True swaps the texts"),
        ({"device": ["cpu", "cpu"]}, r"predict\(distributed=True\)"),
    ],
    ids=str,
)
def test_contradictions_in_predict(encoder, given, message):
    with pytest.raises(ConfigurationError, match=message):
        encoder.predict(PAIRS, **given)


def test_a_setting_that_a_config_lacks(tmp_path):
    config = DistilBertConfig(vocab_size=200, dim=32, hidden_dim=64, n_layers=1, n_heads=4, num_labels=1)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"'classifier_dropout': 0.1.: DistilBertConfig has no such setting"):
        CrossEncoder(str(tmp_path), config_kwargs={"classifier_dropout": 0.1})
    changed = CrossEncoder(str(tmp_path), config_kwargs={"seq_classif_dropout": 0.1}, device="cpu")
    assert changed.model.dropout.p == 0.1


# -- training ----------------------------------------------------------------------------------------------------------


def test_fit_takes_no_activation_but_none(encoder):
    rows = DataLoader([("a cat", "a dog", 1), ("a cat", "a car", 0)], batch_size=2)
    trained = CrossEncoder(build_model(), tokenizer=build_tokenizer())
    trained.fit(rows, None, 1, None, nn.Identity(), "WarmupLinear", 0, show_progress_bar=False)
    assert np.abs(trained.predict(PAIRS) - encoder.predict(PAIRS)).max() > 1e-6
    with pytest.raises(ConfigurationError, match=r"activation_fct=Sigmoid\(\).*loss_fct=MSELoss\(\)"):
        trained.fit(rows, activation_fct=nn.Sigmoid())


def test_the_trainer_names_what_it_takes_instead(tmp_path, encoder):
    rows = Dataset.from_dict({"a": ["a cat"] * 2, "b": ["a dog", "a car"], "label": [1, 0]})
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    for given, message in [
        ({"args": args, "loss": nn.BCEWithLogitsLoss()}, "compute_loss_func="),
        ({"args": args, "evaluator": print}, "compute_metrics="),
        ({"args": TheirArguments(str(tmp_path), report_to="none", use_cpu=True)}, "transformers.TrainingArguments"),
        ({"args": args, "data_collator": rows}, "train_dataset="),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            CrossEncoderTrainer(build_model(), **given)
    for model in (encoder, TheirEncoder(encoder.config.name_or_path, device="cpu")):
        with pytest.raises(ConfigurationError, match=r"model=encoder.model, and processing_class=encoder.tokenizer"):
            CrossEncoderTrainer(model, args, train_dataset=rows)
    tokenizer = build_tokenizer()
    assert (
        CrossEncoderTrainer(build_model(), args, train_dataset=rows, tokenizer=tokenizer).processing_class is tokenizer
    )


# -- their evaluators --------------------------------------------------------------------------------------------------

EVALUATORS = [
    lambda: CrossEncoderClassificationEvaluator(PAIRS[:12], [1, 0] * 6, prompt_name="ask", write_csv=False),
    lambda: CrossEncoderRerankingEvaluator(
        [{"query": LONG, "positive": SENTENCES[:2], "documents": SENTENCES[:8]}], batch_size=4, write_csv=False
    ),
    lambda: CECorrelationEvaluator(PAIRS[:12], [index / 12 for index in range(12)], write_csv=False),
]


@pytest.mark.filterwarnings("ignore:The CECorrelationEvaluator:DeprecationWarning")
@pytest.mark.parametrize("evaluator", EVALUATORS, ids=["classification", "reranking", "correlation"])
def test_their_evaluators_find_the_same(folders, evaluator):
    encoders = [kind(folders[1], device="cpu", prompts={"ask": "how is "}) for kind in (CrossEncoder, TheirEncoder)]
    found, expected = (evaluator()(encoder) for encoder in encoders)
    assert found == pytest.approx(expected, rel=1e-5)
