"""A causal language model that answers yes or no is a classifier, exactly, and sentence-transformers agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rerankers import LONG, build, build_tokenizer, save
from sentence_transformers import CrossEncoder as TheirEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import nn
from transformers import AutoModelForCausalLM, TrainingArguments

from cross_trainer.data.templates import PUBLISHED, Template
from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.saved.chat import write_chat_template
from cross_trainer.saved.rerankers import find_answers, published, to_classifier
from cross_trainer.scoring import precision
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.training.trainer import CrossEncoderTrainer

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma")
PAIRS = [
    (f"what is the capital of {word}?", text) for word in ("france", "spain") for text in ("paris is it", LONG, "a")
]
MANY = [(f"question {number}", "paris " * (1 + number * 7 % 23)) for number in range(64)]
CHAT = write_chat_template(PUBLISHED["qwen3-reranker"].to_dict())


def save_theirs(folder: Path, model, chat_template: str | None = None, answers=("yes", "no"), **options) -> str:
    """A folder as sentence-transformers writes it, with its LogitScore."""
    plain = save(folder / "plain", model, chat_template)
    ids = build_tokenizer().convert_tokens_to_ids(list(answers))
    modules = [Transformer(plain, transformer_task="text-generation"), LogitScore(*ids)]
    TheirEncoder(modules=modules, device="cpu", **options).save_pretrained(str(folder / "theirs"))
    return str(folder / "theirs")


def theirs(folder: str, pairs=PAIRS, **options) -> np.ndarray:
    encoder = TheirEncoder(folder, device="cpu")
    return encoder.predict(pairs, show_progress_bar=False, activation_fn=nn.Identity(), **options)


def logits(encoder: CrossEncoder, pairs=PAIRS) -> np.ndarray:
    return encoder.predict(pairs, activation="logits")


def differences(model, encoder: CrossEncoder, pairs=PAIRS, side: str | None = None) -> np.ndarray:
    """The causal model's own differences, one pair at a time, or in one padded batch."""
    tokenizer, answers = encoder.tokenizer, encoder.config.cross_trainer["answers"]
    rows = []
    for pair in pairs:
        parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in encoder.template.fill(*pair)]
        excess = max(sum(map(len, parts)) - encoder.max_length, 0)
        place = next(at for at, part in enumerate(encoder.template.parts) if "{document}" in part)
        parts[place] = parts[place][: len(parts[place]) - excess]  # the document is the last text of its part
        rows.append([token for part in parts for token in part])
    batches = [rows] if side else [[row] for row in rows]
    found = []
    for batch in batches:
        padded = tokenizer.pad({"input_ids": batch}, padding_side=side or "right", return_tensors="pt")
        last = padded["attention_mask"].shape[1] - 1 - padded["attention_mask"].flip(1).argmax(1)
        with torch.no_grad():
            found.append(model(**padded).logits[torch.arange(len(batch)), last].float())
    found = torch.cat(found)[:, answers]
    return (found[:, 0] - (found[:, 1] if len(answers) == 2 else 0)).numpy()


# -- conversion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_model_by_its_name(tmp_path, family, tied):
    model = build(family, tied)
    encoder = CrossEncoder(save(tmp_path / "Qwen3-Reranker-0.6B", model))
    assert type(encoder.model).__name__ == type(model).__name__.replace("CausalLM", "SequenceClassification")
    assert (encoder.num_labels, encoder.truncation, encoder.template) == (1, "only_second", PUBLISHED["qwen3-reranker"])
    assert encoder.max_length == 512  # fewer than the 8,192 of the published models, for there are no more positions
    for pairs in (PAIRS, PAIRS[:1], MANY[:7], MANY):
        np.testing.assert_allclose(logits(encoder, pairs), differences(model, encoder, pairs), atol=1e-5)
    for side in ("left", "right"):
        np.testing.assert_allclose(logits(encoder), differences(model, encoder, side=side), atol=1e-5)
    np.testing.assert_allclose(encoder.predict(PAIRS), 1 / (1 + np.exp(-logits(encoder))), atol=1e-6)
    encoder.save_pretrained(tmp_path / "saved")
    again = CrossEncoder(str(tmp_path / "saved"))
    np.testing.assert_allclose(logits(again), logits(encoder), atol=1e-6)
    np.testing.assert_allclose(theirs(str(tmp_path / "saved")), logits(encoder), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "answers"), [("mxbai-rerank-base-v2", ("1", "0")), ("bge-reranker-v2-gemma", ("Yes",))]
)
def test_other_published_models(tmp_path, name, answers):
    model = build("qwen2" if "mxbai" in name else "gemma")
    encoder = CrossEncoder(save(tmp_path / name, model))
    assert encoder.config.cross_trainer["answers"] == list(find_answers(encoder.tokenizer, answers))
    short = [PAIRS[0], PAIRS[2], *MANY[:5]]
    tokenizer, ends = encoder.tokenizer, encoder.config.cross_trainer["answers"]
    expected = []
    for query, document in short:  # as the code on their model cards joins tokens
        pieces = {
            "bge-reranker-v2-gemma": ["<bos>", f"A: {query}", "\n", f"B: {document}", "\n", encoder.template.parts[-1]],
            "mxbai-rerank-base-v2": [
                encoder.template.parts[0],
                f"query: {query}",
                "\n",
                f"document: {document}",
                "\n",
                *encoder.template.parts[-2:],
            ],
        }[name]
        ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0, -1]
        expected.append((row[ends[0]] - (row[ends[1]] if len(ends) == 2 else 0)).item())
    np.testing.assert_allclose(logits(encoder, short), expected, atol=1e-5)
    default = logits(encoder, short) if len(answers) == 1 else 1 / (1 + np.exp(-logits(encoder, short)))
    np.testing.assert_allclose(encoder.predict(short), default, atol=1e-6)


@pytest.mark.parametrize("chat_template", [None, CHAT])
@pytest.mark.parametrize("answers", [("yes", "no"), ("Yes",)])
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Identity()])
def test_a_folder_of_sentence_transformers(tmp_path, chat_template, answers, activation):
    folder = save_theirs(tmp_path, build("llama"), chat_template, answers, activation_fn=activation)
    encoder = CrossEncoder(folder, max_length=400)
    assert (encoder.template is None) == (chat_template is None)
    expected = theirs(folder, processing_kwargs={"text": {"max_length": 400}})
    np.testing.assert_allclose(logits(encoder, PAIRS[:1]), expected[:1], atol=1e-5)
    np.testing.assert_allclose(logits(encoder), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.predict(PAIRS[0]), activation(torch.tensor(expected[0])), atol=1e-5)


def test_half_precision(tmp_path, monkeypatch):
    """The row is rounded once, so scores are nearer to those of exact logits than the causal model's own are."""
    model = build(dtype=torch.bfloat16)
    folder = save(tmp_path / "Qwen3-Reranker-4B", model)
    encoder, exact = CrossEncoder(folder), CrossEncoder(folder, dtype="float32")
    assert (encoder.model.score.weight.dtype, exact.model.score.weight.dtype) == (torch.bfloat16, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    np.testing.assert_allclose(logits(exact), differences(reference, exact), atol=1e-5)
    rows = model.get_output_embeddings().weight[encoder.config.cross_trainer["answers"]].float()
    assert torch.equal(exact.model.score.weight[0], rows[0] - rows[1])
    assert torch.equal(encoder.model.score.weight[0], (rows[0] - rows[1]).bfloat16())
    assert np.abs(logits(encoder) - logits(exact)).max() < 0.2
    for chosen, explicit in ((torch.float32, exact), (torch.bfloat16, encoder)):
        monkeypatch.setattr(precision, "_decide", lambda *_, chosen=chosen: chosen)
        np.testing.assert_array_equal(logits(CrossEncoder(folder, dtype="auto")), logits(explicit))


def test_tokens_of_an_unknown_model(tmp_path):
    model, tokenizer = build("mistral", tied=False), build_tokenizer()
    folder = save(tmp_path / "own", model)
    with pytest.raises(ConfigurationError, match=r"MistralForCausalLM.*tokens=\(\"yes\", \"no\"\)"):
        CrossEncoder(folder)
    encoder = CrossEncoder(folder, tokens=("no", "yes"), template="qwen3-reranker")
    np.testing.assert_allclose(logits(encoder), differences(model, encoder), atol=1e-5)
    ids = encoder.config.cross_trainer["answers"]
    assert ids == [tokenizer.convert_tokens_to_ids("no"), tokenizer.convert_tokens_to_ids("yes")]
    by_id = CrossEncoder(folder, tokens=tuple(ids), template=PUBLISHED["qwen3-reranker"])
    np.testing.assert_array_equal(logits(by_id), logits(encoder))
    loaded = CrossEncoder(build("mistral", False), tokenizer=tokenizer, tokens=("no", "yes"), template="qwen3-reranker")
    np.testing.assert_allclose(logits(loaded), logits(encoder), atol=1e-5)
    assert CrossEncoder(folder, num_labels=1).num_labels == 1  # a new head, as for any other model


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("yes", "perhapsy"), "'perhapsy' is no single token"),
        ("yes", "expected the answer"),
        ((), "expected the answer"),
        (("yes", "yes"), "the same token"),
        ((9999,), "none with the id 9999"),
    ],
)
def test_answers_that_are_no_tokens(tmp_path, tokens, message):
    with pytest.raises(ConfigurationError, match=message):
        CrossEncoder(save(tmp_path, build()), tokens=tokens)


def test_models_that_give_no_answers(tmp_path):
    encoder = CrossEncoder(save(tmp_path / "causal", build()), tokens=("yes",))
    encoder.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ConfigurationError, match="architecture Qwen3ForSequenceClassification"):
        CrossEncoder(str(tmp_path / "classifier"), tokens=("yes", "no"))
    with pytest.raises(ConfigurationError, match=r"Qwen3ForCausalLM.*Give CrossEncoder\(model, tokenizer"):
        CrossEncoder(build(), tokenizer=build_tokenizer())


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gemma2", {}, "gemma2.*final_logit_softcapping bends its logits"),
        ("granite", {}, "granite.*no sequence classifier of this type"),
        (
            "minicpm3",
            {"hidden_size": 32, "dim_model_base": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "num_key_value_heads": 4},
            "its logits differ",
        ),
    ],
)
def test_families_that_can_not_be_converted(tmp_path, family, options, message):
    folder = save(tmp_path, build(family, **options))
    with pytest.raises(UnsupportedModelError, match=message):
        CrossEncoder(folder, tokens=("yes", "no"))


def test_a_bias_that_the_classifier_lacks():
    model = build("qwen2", tied=False)
    model.lm_head = nn.Linear(32, 640)
    with pytest.raises(UnsupportedModelError, match=r"differ by -?\d.* in bias"):
        to_classifier(model, (5, 6))
    model.lm_head.bias.data.zero_()
    assert to_classifier(model, (5, 6)).num_labels == 1


def test_weights_that_are_not_there(tmp_path):
    folder = Path(save(tmp_path / "Qwen3-Reranker-8B", build(tied=False)))
    model = build(tied=False)
    model.model.save_pretrained(folder)  # without its head
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(ConfigurationError, match=r"no weights for lm_head\.weight"):
        CrossEncoder(str(folder))


def test_names_of_published_models():
    assert published("models/Qwen3-Reranker-8B/").tokens == ("yes", "no")
    assert published("Qwen/Qwen3-Embedding-8B") is None


# -- training ----------------------------------------------------------------------------------------------------------


def train(folder: str | Path, out: Path, rows, **options) -> CrossEncoderTrainer:
    arguments = TrainingArguments(
        str(out), max_steps=2, learning_rate=1e-3, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = CrossEncoderTrainer(str(folder), arguments, train_dataset=rows, **options)
    trainer.train()
    trainer.save_model()
    return trainer


ROWS = [{"query": query, "document": text, "label": index % 2} for index, (query, text) in enumerate(MANY[:8])]


def test_training_starts_from_the_answers(tmp_path):
    model = build()
    folder = save(tmp_path / "Qwen3-Reranker-0.6B", model)
    before = logits(CrossEncoder(folder))
    trainer = CrossEncoderTrainer(
        folder, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), eval_dataset=ROWS
    )
    found = trainer.predict([{"query": query, "document": text} for query, text in PAIRS]).predictions[:, 0]
    np.testing.assert_allclose(found, before, atol=1e-5)
    trainer = train(folder, tmp_path / "out", ROWS)
    assert trainer.data_collator.template == PUBLISHED["qwen3-reranker"]
    assert trainer.plan.padding_free
    saved = CrossEncoder(str(tmp_path / "out"))
    assert np.abs(logits(saved) - before).max() > 1e-3
    np.testing.assert_allclose(theirs(str(tmp_path / "out")), logits(saved), atol=1e-5)
    shutil.rmtree(tmp_path / "out")


def test_training_on_tokens_of_an_unknown_model(tmp_path):
    folder = save(tmp_path / "own", build("llama", tied=False))
    trainer = train(folder, tmp_path / "out", ROWS, model_kwargs={"tokens": ("yes", "no")})
    assert trainer.data_collator.template is None
    assert trainer.model.config.cross_trainer["answers"] == list(find_answers(build_tokenizer(), ("yes", "no")))
    assert CrossEncoder(str(tmp_path / "out")).template is None


def test_a_new_head_for_other_labels(tmp_path):
    folder = save(tmp_path / "Qwen3-Reranker-0.6B", build())
    rows = [{**row, "label": index % 3} for index, row in enumerate(ROWS)]
    trainer = train(folder, tmp_path / "out", rows)
    assert trainer.model.num_labels == 3
    assert trainer.data_collator.template == Template.of("qwen3-reranker")


# -- back again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [("yes", "no"), ("Yes",)])
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("llama", False), ("gemma", True)])
def test_a_model_goes_back_into_the_causal_form(tmp_path, family, tied, answers):
    model = build(family, tied)
    encoder = CrossEncoder(save(tmp_path / "own", model), tokens=answers, template="qwen3-reranker")
    for name, changed in (("as it was", False), ("trained", True)):
        if changed:
            with torch.no_grad():
                for weight in encoder.model.parameters():
                    weight.add_(torch.randn_like(weight), alpha=0.01)
        folder = tmp_path / name
        encoder.save_pretrained(folder, to_causal=True)
        causal = AutoModelForCausalLM.from_pretrained(folder)
        assert type(causal) is type(model)
        assert causal.config.tie_word_embeddings == (tied and not changed)
        np.testing.assert_allclose(differences(causal, encoder), logits(encoder), atol=1e-5)
        if tied and not changed:
            assert all(
                torch.equal(one, other) for one, other in zip(model.parameters(), causal.parameters(), strict=True)
            )
        np.testing.assert_allclose(theirs(str(folder)), logits(encoder), atol=1e-5)
        again = CrossEncoder(str(folder))
        np.testing.assert_allclose(logits(again), logits(encoder), atol=1e-5)
        assert again.template == encoder.template


def test_half_precision_goes_back_without_rounding(tmp_path):
    encoder = CrossEncoder(save(tmp_path / "own", build(dtype=torch.bfloat16)), tokens=("yes", "no"))
    encoder.model.score.weight.data *= 1.5
    encoder.save_pretrained(tmp_path / "causal", to_causal=True)
    head = AutoModelForCausalLM.from_pretrained(tmp_path / "causal").get_output_embeddings().weight
    yes, no = encoder.config.cross_trainer["answers"]
    assert torch.equal(head[yes] - head[no], encoder.model.score.weight[0])


def test_a_trained_classifier_goes_back(tmp_path):
    folder = save_theirs(tmp_path, build(), CHAT)
    train(folder, tmp_path / "out", ROWS)
    encoder = CrossEncoder(str(tmp_path / "out"))
    encoder.save_pretrained(tmp_path / "causal", to_causal=True)
    np.testing.assert_allclose(theirs(str(tmp_path / "causal")), logits(encoder), atol=1e-5)


def test_what_never_was_causal_does_not_go_back(tmp_path):
    encoder = CrossEncoder(save(tmp_path, build()), num_labels=1)
    with pytest.raises(ConfigurationError, match="was never a causal language model"):
        encoder.save_pretrained(tmp_path / "causal", to_causal=True)


def test_adapters_over_answers(tmp_path):
    encoder = CrossEncoder(save(tmp_path / "Qwen3-Reranker-0.6B", build()))
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4, init_lora_weights=False)
    adapted = CrossEncoder(get_peft_model(encoder.model, settings), tokenizer=encoder.tokenizer)
    assert adapted.template == PUBLISHED["qwen3-reranker"]
    expected = logits(adapted, PAIRS[:3])
    adapted.save_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(logits(CrossEncoder(str(tmp_path / "adapter")), PAIRS[:3]), expected, atol=1e-5)
    adapted.save_pretrained(tmp_path / "merged", merge_adapters=True)
    merged = CrossEncoder(str(tmp_path / "merged"))
    merged.save_pretrained(tmp_path / "causal", to_causal=True)
    np.testing.assert_allclose(logits(CrossEncoder(str(tmp_path / "causal")), PAIRS[:3]), expected, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="can't become a causal language model"):
        adapted.save_pretrained(tmp_path / "causal", to_causal=True)
