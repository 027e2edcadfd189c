"""What a model's config leaves open: how many tokens fit, where padding goes and what it is, whether all tokens fit."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import SENTENCES, build_model, build_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.folder import COUNTED_FROM_PADDING, position_limit
from cross_trainer.saved.reading import check_vocabulary, padding_side, with_padding
from cross_trainer.scoring.cross_encoder import CrossEncoder

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "d_model": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 64,
    "n_positions": 40,
    "n_layers": 2,
    "n_heads": 4,
    "dim": 32,
    "hidden_dim": 64,
    "ffn_dim": 64,
    "dff": 64,
    "emb_dim": 32,
    "d_inner": 64,
    "max_position_embeddings": 40,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "max_seq_len": 40,
    "entity_emb_size": 32,
    "entity_vocab_size": 10,
    "rotary_dim": 4,
    "true_hidden_size": 32,
    "intra_bottleneck_size": 32,
    "input_size": 32,
    "coordinate_size": 5,
    "shape_size": 6,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "channel_shrink_ratio": 2,
    "attention_window": [8, 8],
    "attention_types": [[["global", "local"], 1]],
    "default_language": "en_XX",
    "languages": ("en_XX",),
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "d_head": 8,
}
T5 = {"num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
WORDS = [" ".join(pair) for pair in zip(SENTENCES, SENTENCES[::-1], strict=True)]
PAIRS = [*zip(WORDS, WORDS[::-1], strict=True), ("a", "b"), ("a man", "b"), ("a", "a dog")]


def build(model_type: str, pad_token_id: int | None = 0, **options):
    """A tiny classifier of any family."""
    kind = CONFIG_MAPPING[model_type]
    special = {
        "funnel": {"block_sizes": [1, 1, 1], "num_decoder_layers": 1, "initializer_std": 0.3},
        "xlnet": {"d_head": None},
        "t5": T5,
    }
    if model_type == "lilt":
        options |= {"hidden_size": 48, "num_attention_heads": 4}
    known = set(inspect.signature(kind).parameters) | set(vars(kind())) | set(kind.attribute_map)
    settings = {name: value for name, value in SMALL.items() if name in known}
    if model_type in {"xlnet", "funnel"}:
        settings = {
            name: settings[name] for name in ("d_model", "n_layer", "n_head", "d_inner", "d_head") if name in settings
        }
    settings |= special.get(model_type, {})
    settings = {name: value for name, value in settings.items() if value is not None}
    config = kind(**{**settings, "vocab_size": 200, "num_labels": 1, "pad_token_id": pad_token_id, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def build_inputs(side: str = "right"):
    tokenizer = build_tokenizer(padding_side=side)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def one_by_one(model, tokenizer, pairs, max_length=36) -> np.ndarray:
    with torch.no_grad():
        rows = [tokenizer(*pair, truncation=True, max_length=max_length, return_tensors="pt") for pair in pairs]
        return np.array([model(**row).logits.item() for row in rows])


# -- positions ---------------------------------------------------------------------------------------------------------


def families_counted_from_padding() -> list[str]:
    """The classifiers in transformers whose embeddings count positions from the padding token, by their source."""
    folder = Path(transformers.__file__).parent / "models"
    sources: dict[str, str] = {}
    for path in folder.glob("*/modeling_*.py"):
        sources[path.parent.name] = sources.get(path.parent.name, "") + path.read_text(encoding="utf-8")
    found = []
    for model_type in CLASSIFIERS:
        module = CONFIG_MAPPING[model_type].__module__.split(".")[-2]
        if re.search(r"create_position_ids_from_input_ids|self\.padding_idx \+ 1", sources.get(module, "")):
            found.append(model_type)
    return found


def test_every_family_that_counts_from_padding_is_known():
    assert set(families_counted_from_padding()) == set(COUNTED_FROM_PADDING)


@pytest.mark.parametrize("pad_token_id", [0, 1, 3])
@pytest.mark.parametrize("model_type", [*sorted(COUNTED_FROM_PADDING), "mpt", "bert", "gpt2", "opt", "bart", "albert"])
def test_the_longest_input_is_the_longest_that_runs(model_type, pad_token_id):
    model = build(model_type, pad_token_id)
    limit = position_limit(model.config)
    first = {"mpnet": 1}.get(model_type, pad_token_id) + 1 if model_type in COUNTED_FROM_PADDING else 0
    assert limit == 40 - first
    ids = torch.arange(limit + 1)[None] + 20
    ids[:, -2:] = 3 if model_type == "bart" else 19
    with torch.no_grad():
        assert model(input_ids=ids[:, :-1]).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)


def test_rotary_positions_have_no_offset():
    assert position_limit(build("esm", position_embedding_type="rotary").config) == 40


# -- padding -----------------------------------------------------------------------------------------------------------

EXACT = ("albert", "bart", "biogpt", "bloom", "ctrl", "deberta", "deberta-v2", "distilbert", "esm", "gpt2", "gpt_neo")
EXACT += ("gptj", "llama", "longformer", "mpnet", "mpt", "openai-gpt", "opt", "qwen3", "roformer", "t5", "xlm", "xlnet")
READING = ("canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", [*EXACT, *READING])
def test_scores_never_depend_on_the_batch(model_type, side):
    model, tokenizer = build(model_type), build_inputs(side)
    if model_type == "mobilebert":
        torch.nn.init.normal_(model.mobilebert.embeddings.word_embeddings.weight[0])  # as in the published one
    encoder = CrossEncoder(model, tokenizer=tokenizer, max_length=36)
    expected = one_by_one(model, tokenizer, PAIRS)
    np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), expected, atol=1e-5)
    assert tokenizer.padding_side == side


@pytest.mark.parametrize("options", [{"padding_free": False}, {"max_tokens": 4096}, {"quantize": None}])
def test_a_left_padding_tokenizer_of_an_encoder(options):
    model, tokenizer = build_model(), build_tokenizer(padding_side="left")
    encoder = CrossEncoder(model, tokenizer=tokenizer, max_length=36, **options)
    expected = one_by_one(model.eval(), tokenizer, PAIRS)
    np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), expected, atol=1e-5)


def test_models_of_others_keep_their_tokenizers_side():
    class Own(type(build("llama"))):
        pass

    model = Own(build("llama").config)
    assert padding_side(model, build_inputs("left")) == "left"
    assert padding_side(model, build_inputs("right")) == "right"
    assert padding_side(build("llama"), build_inputs("left")) == "right"
    assert padding_side(build("xlnet"), build_inputs("right")) == "left"


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "mistral", "gpt2", "opt", "bloom", "gemma", "ctrl"])
@pytest.mark.parametrize("has_token", [True, False])
def test_a_padding_token_that_the_config_lacks(model_type, has_token):
    model, tokenizer = build(model_type), build_inputs()
    expected = one_by_one(model, tokenizer, PAIRS)
    model.config.pad_token_id = None
    if not has_token:
        tokenizer.pad_token, tokenizer.eos_token = None, "z"
    config = copy.deepcopy(model.config.to_dict())
    encoder = CrossEncoder(model, tokenizer=tokenizer, max_length=36)
    np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), expected, atol=1e-5)
    ranking = encoder.rank("a man", SENTENCES)
    assert len(ranking) == len(SENTENCES)
    assert model.config.to_dict() == config
    assert (tokenizer.pad_token is None) == (not has_token)


@pytest.mark.parametrize("other", [5, -1, 199])
def test_a_decoder_whose_config_has_another_padding_token(other):
    """5 is a token of the tokenizer, which pads then; -1 and 199 aren't, and the tokenizer's own counts."""
    model, tokenizer = build("llama"), build_inputs()
    expected = one_by_one(model, tokenizer, PAIRS)
    model.config.pad_token_id = other
    encoder = CrossEncoder(model, tokenizer=tokenizer, max_length=36)
    np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), expected, atol=1e-5)
    assert (tokenizer.pad_token_id, model.config.pad_token_id) == (0, other)


def test_no_token_to_pad_with():
    tokenizer = build_inputs()
    tokenizer.pad_token = None
    model = build("llama", None)
    with pytest.raises(
        ConfigurationError, match=r"neither a padding token nor an end of text.*Set tokenizer\.pad_token"
    ):
        with_padding(tokenizer, model)


# -- tokens without an embedding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "llama", "deberta", "bart"])
def test_tokens_without_an_embedding_are_named_before_anything_runs(model_type):
    model, tokenizer = build(model_type), build_inputs()
    check_vocabulary(model, tokenizer)
    tokenizer.add_tokens([f"<new {index}>" for index in range(100)])
    message = r"218 tokens and the model embeddings for 200: '<new 82>' \(200\) has none.*resize_token_embeddings"
    with pytest.raises(ConfigurationError, match=message):
        CrossEncoder(model, tokenizer=tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    assert CrossEncoder(model, tokenizer=tokenizer, max_length=30).predict([("a <new 99>", "b")]).shape == (1,)


def test_a_model_without_a_vocabulary_takes_any_tokenizer():
    check_vocabulary(build("canine"), build_inputs())


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_as_path_or_text(tmp_path, kind):
    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    expected = one_by_one(build_model().eval(), build_tokenizer(), PAIRS)
    scores = CrossEncoder(kind(tmp_path), max_length=36, cache_dir=kind(tmp_path)).predict(PAIRS, activation="logits")
    np.testing.assert_allclose(scores, expected, atol=1e-5)
