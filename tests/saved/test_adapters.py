"""Adapters of peft: every reader scores as the trainer did, from the adapter's folder and from the merged one."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import joblib
import numpy as np
import peft
import pytest
import torch
from commands import run
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset
from safetensors.torch import load_file, save_file
from saved.test_loading import build, build_inputs
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    TrainingArguments,
    pipeline,
)

from cross_trainer import CrossEncoder, CrossEncoderTrainer, PairCollator
from cross_trainer.commands.score import _model_fingerprint
from cross_trainer.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from cross_trainer.saved.adapters import Adapter, merged, plain_name

PAIRS = list(zip(SENTENCES[:8], SENTENCES[4:], strict=True))
SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
KINDS = {
    "lora": {},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 16},
    "bias": {"bias": "all"},
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "pooler": {"modules_to_save": ["pooler"]},
    "no task": {"task_type": None, "modules_to_save": ["classifier"]},
}


def rows(num_labels: int) -> list[tuple[str, str, float | int]]:
    return [(*pair, index % num_labels if num_labels > 1 else index % 5 / 4) for index, pair in enumerate(PAIRS)]


def lora(model, **options):
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], "init_lora_weights": False}
    torch.manual_seed(3)
    return peft.get_peft_model(model, peft.LoraConfig(**{**settings, **options}))


def arguments(folder: Path, **options) -> TrainingArguments:
    settings = {"max_steps": 2, "learning_rate": 0.02, "per_device_train_batch_size": 4, "report_to": "none"}
    return TrainingArguments(str(folder), **{**settings, "use_cpu": True, "save_strategy": "no", **options})


def trainer_of(
    model, folder: Path, num_labels: int = 1, collator: dict | None = None, **options
) -> CrossEncoderTrainer:
    ours = {name: options.pop(name) for name in ("merge_adapters",) if name in options}
    settings = {"max_length": 24, "truncation": "only_second", **(collator or {})}
    return CrossEncoderTrainer(
        model,
        arguments(folder, **options),
        PairCollator(build_tokenizer(), **settings),
        train_dataset=rows(num_labels),
        **ours,
    )


def trained(base: Path, folder: Path, num_labels: int = 1, **settings) -> CrossEncoderTrainer:
    torch.manual_seed(1)
    options = {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    model = AutoModelForSequenceClassification.from_pretrained(str(base), **options)
    trainer = trainer_of(lora(model, **settings), folder, num_labels)
    trainer.train()
    return trainer


def predicted(trainer: CrossEncoderTrainer, num_labels: int = 1) -> np.ndarray:
    return trainer.predict(rows(num_labels)).predictions.reshape(len(PAIRS), -1)


def logits(folder: Path, **options) -> np.ndarray:
    return CrossEncoder(folder, device="cpu", **options).predict(PAIRS, activation="logits").reshape(len(PAIRS), -1)


def read_by_hand(model, **_) -> np.ndarray:
    batch = PairCollator(build_tokenizer(), max_length=24, truncation="only_second").tokenizer(
        *zip(*PAIRS, strict=True), padding=True, truncation="only_second", max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        return model.eval()(**batch).logits.numpy()


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Base models in folders: bare with its pooler, a language model without one, and a classifier of two labels."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    models = {
        "bare": BertModel(BertConfig(**SIZE)),
        "language": BertForMaskedLM(BertConfig(**SIZE)),
        "classifier": build_model(2),
        "half": BertModel(BertConfig(**SIZE)).bfloat16(),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_score_as_the_trainer_did(bases, tmp_path, kind):
    trainer = trained(bases["language"], tmp_path / "run", **KINDS[kind])
    expected = predicted(trainer)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.save_model(tmp_path / "adapter")
    trainer.save_model(tmp_path / "merged", merge_adapters=True)
    for form in ("adapter", "merged"):
        np.testing.assert_allclose(logits(tmp_path / form), expected, atol=1e-5)
        read = CrossEncoder(tmp_path / form, device="cpu")
        assert (read.max_length, read.truncation, str(read.activation_fn)) == (24, "only_second", "Sigmoid()")
    after = trainer.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert "peft" not in (tmp_path / "merged" / "config.json").read_text(encoding="utf-8")
    assert not (tmp_path / "adapter" / "config.json").exists()


@pytest.mark.parametrize(("base", "num_labels"), [("bare", 1), ("language", 3), ("classifier", 2), ("classifier", 1)])
def test_every_reader_scores_as_the_trainer_did(bases, tmp_path, base, num_labels):
    from sentence_transformers import CrossEncoder as OtherEncoder

    trainer = trained(bases[base], tmp_path / "run", num_labels)
    expected = predicted(trainer, num_labels)
    adapter, whole = tmp_path / "adapter", tmp_path / "merged"
    trainer.save_model(adapter)
    trainer.save_model(whole, merge_adapters=True)
    asked = {"num_labels": num_labels, "ignore_mismatched_sizes": True}  # of the base's head, which isn't used
    found = {
        "AutoModel, adapter": AutoModelForSequenceClassification.from_pretrained(str(adapter), **asked),
        "AutoPeftModel, adapter": peft.AutoPeftModelForSequenceClassification.from_pretrained(str(adapter), **asked),
        "AutoModel, merged": AutoModelForSequenceClassification.from_pretrained(str(whole)),
    }
    for model in found.values():
        np.testing.assert_allclose(read_by_hand(model), expected, atol=1e-5)
    classify = pipeline("text-classification", str(whole), top_k=None, function_to_apply="none")
    pair = {"text": PAIRS[0][0], "text_pair": PAIRS[0][1]}
    scores = sorted(classify(pair), key=lambda entry: entry["label"])
    np.testing.assert_allclose([entry["score"] for entry in scores], expected[0], atol=1e-5)
    for folder in (adapter, whole):
        other = OtherEncoder(str(folder), device="cpu")
        ours = CrossEncoder(folder, device="cpu")
        short = [pair for pair in PAIRS if len(" ".join(pair)) < 60]
        np.testing.assert_allclose(other.predict(short), ours.predict(short), atol=1e-5)
        assert other.max_seq_length == ours.max_length == 24


# -- what peft has saved -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "num_labels"), [("bare", 1), ("bare", 3), ("classifier", 2), ("classifier", 1)])
def test_a_folder_of_peft_alone(bases, tmp_path, base, num_labels):
    options = {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    adapted = lora(AutoModelForSequenceClassification.from_pretrained(str(bases[base]), **options)).eval()
    adapted.save_pretrained(tmp_path)
    assert CrossEncoder(tmp_path).num_labels == num_labels
    expected = CrossEncoder(adapted, tokenizer=build_tokenizer(), device="cpu").predict(PAIRS, activation="logits")
    np.testing.assert_array_equal(logits(tmp_path), expected.reshape(len(PAIRS), -1))
    if num_labels == 2:  # 0 and 1 ask for one logit
        assert predicted(trainer_of(str(tmp_path), tmp_path / "run", 2), 2).shape == (len(PAIRS), 1)
        return
    trainer = trainer_of(str(tmp_path), tmp_path / "run", num_labels)
    np.testing.assert_allclose(predicted(trainer, num_labels), expected.reshape(len(PAIRS), -1), atol=1e-5)


def test_the_base_of_an_adapter_without_a_head_has_one(bases, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(str(bases["classifier"]))
    model.config.id2label = {0: "no", 1: "yes"}
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "base"))
    adapted = lora(model, task_type=None)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not any("classifier" in key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    expected = CrossEncoder(adapted, tokenizer=build_tokenizer(), device="cpu").predict(PAIRS, activation="logits")
    np.testing.assert_array_equal(logits(tmp_path / "adapter"), expected)
    assert CrossEncoder(tmp_path / "adapter").config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("read", ["encoder", "trainer"])
def test_weights_that_peft_has_lost_are_named(bases, tmp_path, read):
    lora(AutoModelForSequenceClassification.from_pretrained(str(bases["language"]))).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"neither the adapter nor its base model .* holds .*bert\.pooler"):
        CrossEncoder(tmp_path) if read == "encoder" else trainer_of(str(tmp_path), tmp_path / "run")


FAMILIES = ["bart", "deberta-v2", "distilbert", "electra", "llama", "modernbert", "mpnet", "roberta", "t5", "xlnet"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_family_loses_its_head(tmp_path, model_type):
    """Those whose head isn't called classifier or score among them, and those with more than one layer in it."""
    build(model_type).base_model.save_pretrained(tmp_path / "base")
    build_inputs().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "base"), num_labels=1)
    adapted = lora(model, target_modules=["q_lin"] if model_type == "distilbert" else "all-linear")
    encoder = CrossEncoder(adapted, tokenizer=build_inputs(), max_length=30, device="cpu")
    expected = encoder.predict(PAIRS, activation="logits")
    encoder.save_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(logits(tmp_path / "adapter")[:, 0], expected)
    encoder.save_pretrained(tmp_path / "merged", merge_adapters=True)
    np.testing.assert_allclose(logits(tmp_path / "merged")[:, 0], expected, atol=1e-5)


def edited(folder: Path, **settings) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8")


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    without_weights(folder)


def truncated(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: tensor for key, tensor in weights.items() if "layer.1.attention" not in key},
        folder / "adapter_model.safetensors",
    )


def with_more(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, "base_model.model.bert.gate.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")


def in_a_folder(folder: Path) -> None:
    (folder / "other").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.move(folder / name, folder / "other" / name)


BROKEN = {
    "no base": (lambda folder: edited(folder, base_model_name_or_path=None), r"doesn't name the base model\. Write"),
    "base gone": (
        lambda folder: edited(folder, base_model_name_or_path="/gone/base"),
        r"'/gone/base', which can't be loaded: .* Put the base model there, or name it in .*adapter_config\.json",
    ),
    "relative": (lambda folder: edited(folder, base_model_name_or_path="./gone"), r"the folder '/.*/gone'"),
    "task": (lambda folder: edited(folder, task_type="CAUSAL_LM"), r"an adapter for CAUSAL_LM, not of a sequence"),
    "class": (
        lambda folder: edited(
            folder, task_type=None, auto_mapping={"base_model_class": "BertModel", "parent_library": ""}
        ),
        r"an adapter for BertModel",
    ),
    "kind": (lambda folder: edited(folder, peft_type="TELEPATHY"), r"adapter_config\.json can't be read by peft"),
    "modules": (
        lambda folder: edited(folder, target_modules=["gate"]),
        r"doesn't fit its base model .*No modules were targeted",
    ),
    "other rank": (lambda folder: edited(folder, r=8), r"doesn't fit its base model .*size mismatch"),
    "no weights": (without_weights, r"adapter_model\.safetensors is missing"),
    "pickled": (pickled, r"Pickled weights can run code.*use_safetensors=False"),
    "truncated": (truncated, r"file lacks base_model\.model\.bert\.encoder\.layer\.1"),
    "too much": (with_more, r"has base_model\.model\.bert\.gate\.weight, which the base model"),
    "whole model": (lambda folder: build_model().save_pretrained(folder), r"a whole model, model\.safetensors, and"),
    "folders": (in_a_folder, r"holds the adapters other in folders of their own\. Name one: .*/other"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_named(bases, tmp_path, case):
    folder = tmp_path / "adapter"
    lora(AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]))).save_pretrained(folder)
    broken, message = BROKEN[case]
    broken(folder)
    for read in (lambda: CrossEncoder(folder), lambda: trainer_of(str(folder), tmp_path / "run", 3)):
        with pytest.raises(ConfigurationError, match=message):
            read()


def test_pickled_adapters_are_read_on_request(bases, tmp_path):
    adapted = lora(AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]), num_labels=1))
    adapted.save_pretrained(tmp_path)
    expected = logits(tmp_path)
    pickled(tmp_path)
    np.testing.assert_array_equal(logits(tmp_path, use_safetensors=False), expected)
    options = {"train_dataset": rows(1), "model_kwargs": {"use_safetensors": False}}
    trainer = CrossEncoderTrainer(str(tmp_path), arguments(tmp_path / "run"), **options)
    np.testing.assert_allclose(predicted(trainer), expected, atol=1e-5)


def test_prompt_tuning_is_refused(bases, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]))
    settings = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    peft.get_peft_model(model, settings).save_pretrained(tmp_path)
    for read in (lambda: CrossEncoder(tmp_path), lambda: trainer_of(str(tmp_path), tmp_path / "run")):
        with pytest.raises(UnsupportedModelError, match="PROMPT_TUNING puts states of its own before a text"):
            read()


def test_peft_is_asked_for_by_name(bases, tmp_path, monkeypatch):
    lora(AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]))).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"an adapter, needs peft: pip install 'cross-trainer\[lora\]'"):
        CrossEncoder(tmp_path)


# -- the base ----------------------------------------------------------------------------------------------------------


def test_the_base_is_found_from_elsewhere_and_in_its_revision(bases, tmp_path, monkeypatch):
    shutil.copytree(bases["bare"], tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    adapted = lora(AutoModelForSequenceClassification.from_pretrained("base", num_labels=1), revision="v2")
    encoder = CrossEncoder(adapted, tokenizer=build_tokenizer(), device="cpu")
    encoder.save_pretrained("adapter")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(logits(tmp_path / "adapter")[:, 0], encoder.predict(PAIRS, activation="logits"))
    adapter = Adapter.read(str(tmp_path / "adapter"), {"revision": "of the adapter", "token": "t"})
    assert adapter.base == str(tmp_path / "base")
    assert adapter.base_source == {"revision": "v2", "token": "t"}
    assert adapted.peft_config["default"].base_model_name_or_path == "base"


def test_a_base_in_half_precision_is_read_in_that_of_training(bases, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(str(bases["half"]), num_labels=1, dtype="float32")
    trainer = trainer_of(lora(model), tmp_path / "run")
    trainer.save_model(tmp_path / "adapter")
    np.testing.assert_allclose(logits(tmp_path / "adapter"), predicted(trainer), atol=1e-5)
    assert CrossEncoder(tmp_path / "adapter", dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


def test_added_tokens(bases, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<new {index}>" for index in range(100)])
    model = AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]), num_labels=1)
    model.resize_token_embeddings(len(tokenizer))
    encoder = CrossEncoder(lora(model), tokenizer=tokenizer, device="cpu")
    encoder.save_pretrained(tmp_path)
    pairs = [("a <new 99> man", "a <new 3>")]
    assert CrossEncoder(tmp_path, device="cpu").predict(pairs) == encoder.predict(pairs)
    trainer = CrossEncoderTrainer(str(tmp_path), arguments(tmp_path / "run"), train_dataset=[(*pairs[0], 1.0)])
    found = trainer.predict([(*pairs[0], 1.0)]).predictions.item()
    np.testing.assert_allclose(found, encoder.predict(pairs, activation="logits"), atol=1e-5)


def test_a_new_head_for_other_labels(bases, tmp_path):
    lora(AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]), num_labels=1)).save_pretrained(tmp_path)
    trainer = trainer_of(str(tmp_path), tmp_path / "run", 3)
    assert predicted(trainer, 3).shape == (len(PAIRS), 3)
    assert CrossEncoder(tmp_path, num_labels=3).is_untrained


# -- further training --------------------------------------------------------------------------------------------------


def test_training_goes_on_from_a_folder(bases, tmp_path):
    first = trained(bases["bare"], tmp_path / "run")
    first.save_model(tmp_path / "adapter")
    through = trainer_of(first.model, tmp_path / "through")
    again = trainer_of(str(tmp_path / "adapter"), tmp_path / "again")
    trainable = {name for name, weight in again.model.named_parameters() if weight.requires_grad}
    assert trainable == {name for name, weight in through.model.named_parameters() if weight.requires_grad}
    assert all("lora" in name or "modules_to_save.default" in name for name in trainable)
    for trainer in (through, again):
        trainer.train()
    weights = through.model.state_dict()
    unused = "original_module"  # the head before training
    weights = {name: tensor for name, tensor in weights.items() if unused not in name}
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in weights.items())
    again.save_model(tmp_path / "further")
    np.testing.assert_allclose(logits(tmp_path / "further"), predicted(again), atol=1e-5)


def test_an_encoder_over_an_adapter_can_be_fitted(bases, tmp_path):
    trained(bases["bare"], tmp_path / "run").save_model(tmp_path / "adapter")
    encoder = CrossEncoder(tmp_path / "adapter", device="cpu")
    before = encoder.predict(PAIRS)
    loader = torch.utils.data.DataLoader(rows(1), batch_size=4)
    encoder.fit(loader, output_path=tmp_path / "fitted", optimizer_params={"lr": 0.02})
    assert not np.allclose(encoder.predict(PAIRS), before)
    fitted = CrossEncoder(tmp_path / "fitted", device="cpu")
    np.testing.assert_array_equal(fitted.predict(PAIRS), encoder.predict(PAIRS))


@pytest.mark.parametrize("name", ["default", "other"])
def test_resuming_gives_the_weights_of_training_through(bases, tmp_path, name):
    def trainer(folder: str, **options) -> CrossEncoderTrainer:
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(str(bases["language"]), num_labels=1)
        settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, settings, adapter_name=name)
        return trainer_of(adapted, tmp_path / folder, max_steps=4, save_strategy="steps", save_steps=2, **options)

    through = trainer("through")
    through.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "through" / "checkpoint-2"))
    weights = through.model.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in resumed.model.state_dict().items())
    np.testing.assert_allclose(logits(tmp_path / "through" / "checkpoint-4"), predicted(through), atol=1e-5)


# -- several adapters --------------------------------------------------------------------------------------------------


def with_two(base: Path):
    adapted = lora(AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=1))
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["key"], init_lora_weights=False)
    adapted.add_adapter("other", settings)
    return adapted.eval()


@pytest.mark.parametrize("active", ["default", "other"])
@pytest.mark.parametrize("save", ["encoder", "trainer"])
def test_the_active_adapter_is_the_folders(bases, tmp_path, active, save):
    adapted = with_two(bases["bare"])
    scores = {}
    for name in ("other", "default", active):
        adapted.set_adapter(name)
        encoder = CrossEncoder(adapted, tokenizer=build_tokenizer(), max_length=24, device="cpu")
        scores[name] = encoder.predict(PAIRS, activation="logits")
    if save == "encoder":
        encoder.save_pretrained(tmp_path)
    else:
        trainer_of(adapted, tmp_path / "run").save_model(tmp_path)
    passive = "other" if active == "default" else "default"
    np.testing.assert_array_equal(logits(tmp_path)[:, 0], scores[active])
    np.testing.assert_array_equal(logits(tmp_path / passive)[:, 0], scores[passive])
    assert not (tmp_path / active).exists()
    encoder.save_pretrained(tmp_path / "merged", merge_adapters=True)
    np.testing.assert_allclose(logits(tmp_path / "merged")[:, 0], scores[active], atol=1e-5)


def test_adapters_that_are_off_or_active_together(bases, tmp_path):
    adapted = with_two(bases["bare"])
    encoder = CrossEncoder(adapted, tokenizer=build_tokenizer(), device="cpu")
    adapted.base_model.disable_adapter_layers()
    for options in ({}, {"merge_adapters": True}):
        with pytest.raises(ConfigurationError, match="switched off"):
            encoder.save_pretrained(tmp_path, **options)
    adapted.base_model.enable_adapter_layers()
    model = AutoModelForSequenceClassification.from_pretrained(str(bases["classifier"]))
    both = lora(model, task_type=None)
    both.add_adapter("other", peft.LoraConfig(r=2, target_modules=["key"], init_lora_weights=False))
    both.base_model.set_adapter(["default", "other"])
    encoder = CrossEncoder(both, tokenizer=build_tokenizer(), device="cpu")
    with pytest.raises(ConfigurationError, match="default, other are active together"):
        encoder.save_pretrained(tmp_path)
    expected = encoder.predict(PAIRS, activation="logits")
    encoder.save_pretrained(tmp_path / "merged", merge_adapters=True)
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, atol=1e-5)


# -- merging -----------------------------------------------------------------------------------------------------------


def test_adapters_merged_in_memory_are_not_merged_twice(bases, tmp_path):
    adapted = lora(AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]), num_labels=1))
    encoder = CrossEncoder(adapted, tokenizer=build_tokenizer(), device="cpu")
    expected = encoder.predict(PAIRS, activation="logits")
    adapted.merge_adapter()
    encoder.save_pretrained(tmp_path / "merged", merge_adapters=True)
    encoder.save_pretrained(tmp_path / "adapter")
    for form in ("adapter", "merged"):
        np.testing.assert_allclose(logits(tmp_path / form)[:, 0], expected, atol=1e-5)
    everywhere = lora(
        AutoModelForSequenceClassification.from_pretrained(str(bases["bare"])), target_modules="all-linear"
    )
    everywhere.merge_adapter()
    with pytest.raises(ConfigurationError, match=r"merged into the weights bert\.pooler.*unmerge_adapter"):
        CrossEncoder(everywhere, tokenizer=build_tokenizer()).save_pretrained(tmp_path / "other")


def test_what_cannot_be_merged_is_named_before_training(bases, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(str(bases["bare"]), num_labels=1)
    with pytest.raises(ConfigurationError, match="has no adapters"):
        trainer_of(plain, tmp_path, merge_adapters=True)
    with pytest.raises(ConfigurationError, match="has no adapters"):
        CrossEncoder(plain, tokenizer=build_tokenizer()).save_pretrained(tmp_path, merge_adapters=True)
    adapted = lora(plain)
    adapted.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UnsupportedModelError, match="quantized base model"):
        merged(adapted)
    del adapted.config.quantization_config
    with pytest.raises(ConfigurationError, match=r'hub_strategy=.every_save.*Set hub_strategy="end"'):
        trainer_of(adapted, tmp_path, merge_adapters=True, push_to_hub=True, hub_model_id="me/x")


def test_a_trainer_that_merges_keeps_adapters_in_its_checkpoints(bases, tmp_path):
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(str(bases["language"]), num_labels=1)
    trainer = trainer_of(lora(model), tmp_path, merge_adapters=True, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "checkpoint-2" / "adapter_config.json").is_file()
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert (tmp_path / "model.safetensors").is_file()
    np.testing.assert_allclose(logits(tmp_path), predicted(trainer), atol=1e-5)
    trainer.save_model(tmp_path, merge_adapters=False)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "config.json").exists()
    np.testing.assert_allclose(logits(tmp_path), predicted(trainer), atol=1e-5)
    trainer.save_model(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    np.testing.assert_allclose(logits(tmp_path), predicted(trainer), atol=1e-5)


def test_an_adapter_is_not_saved_over_its_base(bases, tmp_path):
    shutil.copytree(bases["bare"], tmp_path / "base")
    adapted = lora(AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "base"), num_labels=1))
    trainer = trainer_of(adapted, tmp_path / "base")
    encoder = CrossEncoder(adapted, tokenizer=build_tokenizer())
    for save in (trainer.train, trainer.save_model, lambda: encoder.save_pretrained(tmp_path / "base")):
        with pytest.raises(ConfigurationError, match="is the folder of the base model"):
            save()
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_a_merged_model_can_be_exported(bases, tmp_path):
    trainer = trained(bases["bare"], tmp_path / "run")
    trainer.save_model(tmp_path, merge_adapters=True)
    model = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    batch = dict(build_tokenizer()(*PAIRS[0], return_tensors="pt"))
    exported = torch.export.export(model, (), batch)
    assert torch.equal(exported.module()(**batch).logits, model(**batch).logits)
    live = merged(trainer.model).eval()
    exported = torch.export.export(live, (), batch)
    torch.testing.assert_close(exported.module()(**batch).logits, model(**batch).logits)


# -- neighbours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder)), "joblib"])
def test_an_encoder_over_adapters_can_be_copied(bases, tmp_path, copied):
    adapted = with_two(bases["bare"])
    encoder = CrossEncoder(adapted, tokenizer=build_tokenizer(), device="cpu")
    expected = encoder.predict(PAIRS)
    if copied == "joblib":
        joblib.dump(encoder, tmp_path / "encoder")
        again = joblib.load(tmp_path / "encoder")
    else:
        again = copied(encoder)
    np.testing.assert_array_equal(again.predict(PAIRS), expected)
    again.model.set_adapter("other")
    assert not np.allclose(again.predict(PAIRS), expected)
    np.testing.assert_array_equal(encoder.predict(PAIRS), expected)


def test_adapters_that_transformers_has_loaded(bases, tmp_path):
    trained(bases["language"], tmp_path / "run").save_model(tmp_path / "adapter")
    model = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"), num_labels=1)
    encoder = CrossEncoder(model, tokenizer=build_tokenizer(), max_length=24, truncation="only_second", device="cpu")
    expected = logits(tmp_path / "adapter")[:, 0]
    np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), expected, atol=1e-5)
    encoder.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(logits(tmp_path / "again")[:, 0], expected, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="needs a model of peft"):
        encoder.save_pretrained(tmp_path / "merged", merge_adapters=True)


def test_the_command_line_trains_and_scores_with_adapters(bases, tmp_path):
    trained(bases["bare"], tmp_path / "run").save_model(tmp_path / "adapter")
    table = tmp_path / "pairs.jsonl"
    Dataset.from_list([dict(zip(("first", "second", "score"), row, strict=True)) for row in rows(1) * 4]).to_json(table)
    options = ["--use_cpu", "--report_to", "none", "--max_steps", "2", "--save_strategy", "no", "--eval_strategy", "no"]
    options += ["--load_best_model_at_end", "False", "--learning_rate", "0.02"]
    for form, merging in {"adapter": [], "merged": ["--merge_adapters"]}.items():
        output = tmp_path / f"trained {form}"
        run("train", "--dataset", table, "--model", tmp_path / "adapter", "--output_dir", output, *options, *merging)
        assert (output / "adapter_config.json").is_file() == (form == "adapter")
        assert (output / "model.safetensors").is_file() == (form == "merged")
        run("score", table, "-o", tmp_path / f"{form}.parquet", "--model", output, "--score-column", "found")
    found = [Dataset.from_parquet(str(tmp_path / f"{form}.parquet"))["found"] for form in ("adapter", "merged")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    encoder = CrossEncoder(tmp_path / "trained adapter", device="cpu")
    np.testing.assert_allclose(
        found[0][: len(PAIRS)], encoder.predict(Dataset.from_json(str(table)))[: len(PAIRS)], atol=1e-5
    )
    assert not np.allclose(found[0][: len(PAIRS)], CrossEncoder(tmp_path / "adapter", device="cpu").predict(PAIRS))


def test_half_done_scores_belong_to_one_adapter_over_one_base(bases, tmp_path):
    shutil.copytree(bases["bare"], tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "base"), num_labels=1)
    CrossEncoder(lora(model), tokenizer=build_tokenizer()).save_pretrained(tmp_path / "adapter")

    def fingerprint() -> str:
        return _model_fingerprint(CrossEncoder(tmp_path / "adapter", device="cpu"), str(tmp_path / "adapter"), None)

    before = fingerprint()
    assert fingerprint() == before
    path = tmp_path / "base" / "model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    other_base = fingerprint()
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    assert len({before, other_base, fingerprint()}) == 3


def test_names_are_a_plain_classifiers():
    assert plain_name("base_model.model.classifier.weight") == "classifier.weight"
    assert plain_name("classifier.base_layer.weight") == "classifier.weight"


# -- entries of config.json that are null ------------------------------------------------------------------------------

NULLS = [
    {"num_labels": None},
    {"id2label": None},
    {"label2id": None},
    {"auto_map": None},
    {"problem_type": None},
    {"num_labels": None, "id2label": None, "label2id": None},
    {"id2label": {}, "label2id": {}},
]


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("entries", [*NULLS, "left out"])
def test_entries_that_are_null_count_as_left_out(tmp_path, num_labels, entries):
    model = build_model(num_labels).eval()
    model.config.label2id = {name: index for index, name in enumerate("xyz"[:num_labels])}
    model.config.id2label = dict(enumerate("xyz"[:num_labels]))
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for entry in NULLS[5] if entries == "left out" else entries:
        config.pop(entry, None)
        config |= {} if entries == "left out" else {entry: entries[entry]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    expected = CrossEncoder(model, tokenizer=build_tokenizer(), device="cpu").predict(PAIRS, activation="logits")
    np.testing.assert_array_equal(logits(tmp_path), expected.reshape(len(PAIRS), -1))
    trainer = CrossEncoderTrainer(str(tmp_path), arguments(tmp_path / "run"), train_dataset=rows(num_labels))
    np.testing.assert_allclose(predicted(trainer, num_labels), expected.reshape(len(PAIRS), -1), atol=1e-5)
    if entries in ({"id2label": None}, {"label2id": None}, {"num_labels": None}):
        assert CrossEncoder(tmp_path).config.id2label == dict(enumerate("xyz"[:num_labels]))


@pytest.mark.parametrize("entry", [{"num_labels": "3"}, {"id2label": ["a"]}, {"label2id": 3}, {"problem_type": 7}])
def test_entries_that_are_something_else_are_named(tmp_path, entry):
    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, **entry}), encoding="utf-8")
    message = re.escape(f"config.json has {next(iter(entry))}={next(iter(entry.values()))!r}, expected")
    for read in (lambda: CrossEncoder(tmp_path), lambda: trainer_of(str(tmp_path), tmp_path / "run")):
        with pytest.raises(ConfigurationError, match=message):
            read()


def test_pickled_models_are_refused_by_both(tmp_path):
    model = build_model()
    model.config.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for read in (lambda: CrossEncoder(tmp_path), lambda: trainer_of(str(tmp_path), tmp_path / "run")):
        with pytest.raises(ConfigurationError, match="no weights in safetensors files"):
            read()
