"""CrossEncoder: the same scores as everybody else, in any form, order and number."""

from __future__ import annotations

import copy
import json
import pickle
import random
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from transformers import BertModel, RobertaConfig, RobertaForSequenceClassification, pipeline

from cross_trainer.data.columns import InputExample
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.saved.folder import describe_scores
from cross_trainer.scoring.cross_encoder import CrossEncoder

ODD = ["", "🎸 naïve 漢字 \u200b\x00", "word " * 10_000, "a man is playing a guitar"]
HEADS = {1: "sigmoid", 3: "softmax", 4: "sigmoid"}


def make_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of one to four sentences with odd texts among them, some of them twice."""
    draw = random.Random(seed)

    def text() -> str:
        if draw.random() < 0.02:
            return draw.choice(ODD)
        return " ".join(draw.choices(SENTENCES, k=draw.randint(1, 4)))

    return [(text(), text()) for _ in range(count)]


def save(folder: Path, num_labels: int = 1, activation: str | None = "sigmoid") -> str:
    model = build_model(num_labels)
    if activation is not None:
        describe_scores(model.config, activation)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=list(HEADS), ids=lambda labels: f"{labels}-labels")
def saved(request, tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"), request.param, HEADS[request.param])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(folder) -> CrossEncoder:
    return CrossEncoder(folder)


def one_by_one(folder: str, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Logits [P, C], each pair by itself through the plain model."""
    encoder = CrossEncoder(folder)
    with torch.no_grad():
        inputs = (encoder.tokenizer(*pair, truncation=True, return_tensors="pt") for pair in pairs)
        return torch.cat([encoder.model.eval()(**row).logits for row in inputs]).numpy()


# -- the same scores as others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_scores_equal_sentence_transformers_and_the_pipeline(saved, count):
    from sentence_transformers import CrossEncoder as SentenceTransformersEncoder

    pairs = make_pairs(count) if count != 7 else [("same", "same")] * 7
    scores = CrossEncoder(saved).predict(pairs)
    expected = SentenceTransformersEncoder(saved, device="cpu").predict(pairs, show_progress_bar=False)
    assert scores.dtype == np.float32
    assert scores.shape == expected.shape
    np.testing.assert_allclose(scores, expected, atol=1e-5)

    some = pairs[:20]
    classify = pipeline("text-classification", saved, device="cpu")
    inputs = [{"text": first, "text_pair": second} for first, second in some]
    results = classify(inputs, top_k=None, truncation=True)
    by_label = [[entry["score"] for entry in sorted(result, key=lambda entry: entry["label"])] for result in results]
    np.testing.assert_allclose(scores[:20].reshape(len(some), -1), by_label, atol=1e-5)


def test_order_doesnt_matter(saved):
    encoder, pairs = CrossEncoder(saved), make_pairs(300)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(encoder.predict([pairs[i] for i in order]), encoder.predict(pairs)[order], atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 1}, {"max_tokens": 100_000}, {"padding_free": False}, {"max_tokens": 200}]
)
def test_batching_changes_nothing(folder, options):
    pairs = make_pairs(200)
    logits = CrossEncoder(folder, **options).predict(pairs, activation="logits")
    np.testing.assert_allclose(logits, one_by_one(folder, pairs)[:, 0], atol=1e-5)


def test_roberta_with_its_shifted_positions(tmp_path):
    tokenizer = build_tokenizer()
    config = RobertaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=0,
        type_vocab_size=2,
        num_labels=1,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder, pairs = CrossEncoder(tmp_path), make_pairs(50)
    assert encoder.max_length == 39
    with torch.no_grad():
        rows = (tokenizer(*pair, truncation=True, max_length=39, return_tensors="pt") for pair in pairs)
        expected = torch.cat([encoder.model.eval()(**row).logits for row in rows])[:, 0].numpy()
    np.testing.assert_allclose(encoder.predict(pairs, activation="logits"), expected, atol=1e-5)


def test_decoders_padded_on_the_left(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = build_tokenizer(padding_side="left")
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        num_labels=1,
    )
    model, pairs = LlamaForSequenceClassification(config).eval(), make_pairs(50)
    with torch.no_grad():
        rows = (tokenizer(*pair, truncation=True, return_tensors="pt") for pair in pairs)
        expected = torch.cat([model(row["input_ids"], row["attention_mask"]).logits for row in rows])[:, 0].numpy()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    scores = CrossEncoder(model, tokenizer=tokenizer, max_tokens=5000).predict(pairs, activation="logits")
    np.testing.assert_allclose(scores, expected, atol=1e-5)


# -- forms of input ----------------------------------------------------------------------------------------------------


def test_all_forms_of_rows_score_alike(encoder):
    pairs = make_pairs(20)
    columns = {"question": [a for a, _ in pairs], "answer": [b for _, b in pairs]}
    forms = {
        "lists": [list(pair) for pair in pairs],
        "dicts": [{"id": str(i), "question": a, "answer": b, "label": 1} for i, (a, b) in enumerate(pairs)],
        "two columns": columns,
        "columns as arrays": {name: np.array(values, dtype=object) for name, values in columns.items()},
        "array": np.array(pairs, dtype=object),
        "array of strings": np.array(pairs[:5]),
        "examples": [InputExample(texts=[a, b], label=0.5) for a, b in pairs],
        "data set": datasets.Dataset.from_dict({**columns, "label": [0] * 20}),
        "stream": datasets.Dataset.from_dict(columns).to_iterable_dataset(),
        "generator": (pair for pair in pairs),
    }
    expected = encoder.predict(pairs)
    for name, rows in forms.items():
        scores = encoder.predict(rows)
        # A batch of 5 and one of 20 may take other kernels, which round otherwise.
        np.testing.assert_allclose(scores[:5], expected[:5], atol=1e-6, err_msg=name)
    named = encoder.predict([{"note": "x", "b": b, "a": a} for a, b in pairs], columns=("a", "b"))
    np.testing.assert_array_equal(named, expected)
    np.testing.assert_array_equal(
        encoder.predict({"b": columns["answer"], "a": columns["question"]}, columns=("a", "b")), expected
    )


@pytest.mark.parametrize("form", [tuple, list, np.array, lambda pair: dict(zip("ab", pair, strict=True))])
def test_a_single_pair_gives_a_single_score(saved, form):
    encoder, pair = CrossEncoder(saved), ("a man", "a dog")
    score = encoder.predict(form(pair))
    rows = encoder.predict([pair])
    assert score.dtype == np.float32
    assert score.shape == rows.shape[1:]
    np.testing.assert_array_equal(score, rows[0])


def test_nothing_to_score(saved):
    encoder = CrossEncoder(saved)
    shape = (0,) if encoder.num_labels == 1 else (0, encoder.num_labels)
    for nothing in ([], {"a": [], "b": []}, np.zeros((0, 2), dtype=object)):
        assert encoder.predict(nothing).shape == shape
        assert encoder.predict(nothing).dtype == np.float32
    assert list(encoder.predict_iter([])) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "b"), ("a", None)], r"Row 1, text 2: expected a text, found None \(NoneType\).*Filter"),
        ([("a", "b"), (3, "b")], r"Row 1, text 1: expected a text, found 3 \(int\)"),
        ([("a", "b"), ("a", float("nan"))], r"Row 1, text 2: expected a text, found nan"),
        ([("a", "b"), ("a", "b", "c")], r"Row 1: expected two texts, found .* with 3 entries"),
        ([("a", "b"), "ab"], r"Row 1: expected two texts, found 'ab' \(str\)"),
        (["a", "b", "c"], r"Row 0: expected two texts, found .*3 entries.*\(first text, second text\)"),
        ("ab", r"found 'ab'. Give rows"),
        (7, r"found 7. Give rows"),
        ([{"a": "x", "b": "y"}, {"a": "x"}], r"Row 1 has no column 'b'"),
        ([{"a": "x", "n": 1}], r"Found 1 text columns \(\['a'\]\) among \['a', 'n'\].*columns="),
        ({"a": ["x"], "b": ["x", "y"]}, r"'a' has 1 rows and column 'b' has 2"),
        ({"a": ["x", "y"], "b": ["x", None]}, r"Row 1, text 2: expected a text, found None"),
        ([{"query": "x", "documents": ["y"], "labels": [1]}], r"list of documents.*rank"),
    ],
)
def test_bad_rows_are_named_before_anything_is_scored(encoder, monkeypatch, rows, message):
    monkeypatch.setattr(type(encoder.model), "forward", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(DataError, match=message):
        encoder.predict(rows)


# -- options -----------------------------------------------------------------------------------------------------------


def test_activations(folder):
    pairs, logits = make_pairs(30), one_by_one(folder, make_pairs(30))[:, 0]
    encoder = CrossEncoder(folder)
    np.testing.assert_allclose(encoder.predict(pairs, activation="logits"), logits, atol=1e-5)
    np.testing.assert_allclose(encoder.predict(pairs), 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(encoder.predict(pairs, activation=torch.tanh), np.tanh(logits), atol=1e-5)
    np.testing.assert_allclose(CrossEncoder(folder, activation=torch.tanh).predict(pairs), np.tanh(logits), atol=1e-5)
    with pytest.raises(ConfigurationError, match="activation='softmax'"):
        encoder.predict(pairs, activation="softmax")
    with pytest.raises(ConfigurationError, match="one row for each row"):
        encoder.predict(pairs, activation=torch.sum)


def test_symmetric_averages_both_orders(saved):
    encoder, pairs = CrossEncoder(saved), make_pairs(40)
    there, back = encoder.predict(pairs), encoder.predict([(b, a) for a, b in pairs])
    assert np.abs(there - back).max() > 1e-3
    np.testing.assert_allclose(encoder.predict(pairs, symmetric=True), (there + back) / 2, atol=1e-6)
    streamed = np.array(list(encoder.predict_iter(pairs, window=7, symmetric=True)))
    np.testing.assert_allclose(streamed, (there + back) / 2, atol=1e-6)


def count_rows(encoder: CrossEncoder) -> list[int]:
    """Rows of every batch that the model of an encoder gets from now on."""
    rows: list[int] = []
    encoder.model.register_forward_pre_hook(
        lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    return rows


def test_a_pair_given_twice_is_computed_once(folder):
    encoder = CrossEncoder(folder)
    rows = count_rows(encoder)
    scores = encoder.predict([("a", "b"), ("c", "d"), ("a", "b")] * 3000)
    assert sum(rows) == 2
    assert scores[0] == scores[2] != scores[1]
    rows.clear()
    encoder.predict([("a", "b"), ("b", "a")], symmetric=True)
    assert sum(rows) == 2


def test_batches_hold_tokens_and_at_most_batch_size_rows(folder):
    encoder = CrossEncoder(folder, max_tokens=128)
    sizes = []
    encoder.model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    encoder.predict(make_pairs(200))
    assert max(rows * width for rows, width in sizes) <= 128
    assert max(rows for rows, _ in sizes) > 3
    sizes.clear()
    encoder.predict(make_pairs(200), batch_size=3)
    assert max(rows for rows, _ in sizes) == 3


def test_half_precision_gives_float32_scores(folder):
    pairs, exact = make_pairs(50), CrossEncoder(folder).predict(make_pairs(50))
    for dtype in ("bfloat16", torch.bfloat16, "float16"):
        encoder = CrossEncoder(folder, dtype=dtype)
        assert next(encoder.model.parameters()).dtype in {torch.bfloat16, torch.float16}
        scores = encoder.predict(pairs)
        assert scores.dtype == np.float32
        assert 0 < np.abs(scores - exact).max() < 0.05


def test_quantised_scores_are_close_and_follow_training(folder):
    pairs, encoder = make_pairs(50), CrossEncoder(folder, quantize="int8")
    exact = CrossEncoder(folder).predict(pairs)
    assert 0 < np.abs(encoder.predict(pairs) - exact).max() < 0.1
    with torch.no_grad():
        encoder.model.bert.encoder.layer[0].output.dense.weight.zero_()
    plain = CrossEncoder(encoder.model, tokenizer=encoder.tokenizer).predict(pairs)
    assert np.abs(plain - exact).max() > 0.1
    assert np.abs(encoder.predict(pairs) - plain).max() < 0.1
    assert type(encoder.model.bert.encoder.layer[0].output.dense) is torch.nn.Linear


def test_compiled_scores_are_the_same(folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(options) or model)
    pairs = make_pairs(20)
    np.testing.assert_array_equal(
        CrossEncoder(folder, compile=True).predict(pairs), CrossEncoder(folder).predict(pairs)
    )
    assert compiled == [{"dynamic": True}]


def test_the_model_itself_stays_as_it_is(folder):
    encoder = CrossEncoder(folder)
    encoder.model.train()
    before = dict(encoder.model.named_modules())
    first = encoder.predict(make_pairs(9))
    assert encoder.model.training
    assert dict(encoder.model.named_modules()) == before
    outputs = encoder.model(**encoder.tokenizer(["a"], ["b c"], return_tensors="pt"), output_hidden_states=True)
    assert outputs.hidden_states[-1].shape[1] > 3
    outputs.logits.sum().backward()
    with torch.no_grad():
        encoder.model.classifier.weight.mul_(-1)  # what training does is seen
    assert np.abs(encoder.predict(make_pairs(9)) - first).max() > 1e-3
    encoder.model.classifier = torch.nn.Linear(32, 1)  # and so are exchanged modules
    second = encoder.predict(make_pairs(9), activation="logits")
    np.testing.assert_allclose(
        second, CrossEncoder(encoder.model, tokenizer=encoder.tokenizer).predict(make_pairs(9), activation="logits")
    )
    assert np.abs(second - first).max() > 1e-3


def test_arguments_that_cant_be_followed(encoder, folder, tmp_path):
    for options, message in [
        ({"max_length": 65}, "positions for 1 to 64"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"quantize": "int4"}, "quantize='int4'"),
        ({"dtype": "int32"}, "dtype='int32'"),
        ({"dtype": "wide"}, "dtype='wide'"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            CrossEncoder(folder, **options)
    with pytest.raises(ConfigurationError, match="needs its tokenizer"):
        CrossEncoder(build_model())
    with pytest.raises(ConfigurationError, match="but the loaded model has 1"):
        CrossEncoder(build_model(), num_labels=3, tokenizer=build_tokenizer())
    with pytest.raises(ConfigurationError, match="found Linear"):
        CrossEncoder(torch.nn.Linear(2, 1), tokenizer=build_tokenizer())
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        encoder.predict([("a", "b")], batch_size=0)
    with pytest.raises(ConfigurationError, match="prompt_name='query'"):
        encoder.predict([("a", "b")], prompt_name="query")
    with pytest.raises(ConfigurationError, match="window=0"):
        next(encoder.predict_iter([("a", "b")], window=0))


def test_results_as_tensors_and_progress(encoder, capsys):
    pairs = make_pairs(9)
    scores = encoder.predict(pairs, convert_to_tensor=True)
    np.testing.assert_array_equal(scores.numpy(), encoder.predict(pairs, show_progress_bar=False))
    assert capsys.readouterr().err == ""
    encoder.predict(pairs, show_progress_bar=True)
    assert "9/9" in capsys.readouterr().err


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_labels", "config", "expected"),
    [
        (1, {}, torch.nn.Sigmoid),
        (3, {}, torch.nn.Identity),
        (1, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, torch.nn.Identity),
        (
            1,
            {
                "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh", "version": "6"},
                "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
            },
            torch.nn.Tanh,
        ),
        (3, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, torch.nn.Softmax),
        (1, {"sbert_ce_default_activation_function": "torch.nn.Identity"}, torch.nn.Identity),
    ],
)
def test_activation_of_the_config(tmp_path, num_labels, config, expected):
    encoder = CrossEncoder(build_model(num_labels, **config), tokenizer=build_tokenizer())
    assert type(encoder.activation_fn) is expected
    scores = encoder.predict(make_pairs(5))
    if expected is torch.nn.Softmax:
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "path",
    ["os.system", "torch.hub.load", "torch.nn.modules.module.torch", "torch.nn.modules.nowhere.X", "evil.Code", "x"],
)
def test_an_activation_is_never_other_code(path, caplog, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = CrossEncoder(build_model(sbert_ce_default_activation_function=path), tokenizer=build_tokenizer())
    assert type(encoder.activation_fn) is torch.nn.Sigmoid
    assert path in caplog.text


def test_code_in_a_repository_isnt_run(tmp_path):
    save(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert CrossEncoder(tmp_path).predict(("a", "b")) > 0
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "new"}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        CrossEncoder(tmp_path)


def test_pickles_are_refused_unless_asked_for(tmp_path):
    save(tmp_path)
    model = build_model()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="use_safetensors=False"):
        CrossEncoder(tmp_path)
    expected = CrossEncoder(model, tokenizer=build_tokenizer()).predict(("a", "b"))
    assert CrossEncoder(tmp_path, use_safetensors=False).predict(("a", "b")) == expected


def test_heads(tmp_path, caplog):
    """A model that is no classifier gets a head if asked to, another number of labels a new one; both say so."""
    BertModel(build_model().config).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigurationError, match=r"found the architecture BertModel.*pass num_labels=1"):
        CrossEncoder(tmp_path / "base")
    encoder = CrossEncoder(tmp_path / "base", num_labels=1)
    assert encoder.num_labels == 1
    encoder.predict(("a", "b"))
    assert "mean nothing before training" in caplog.text
    caplog.clear()
    save(tmp_path / "saved", 3, "softmax")
    assert CrossEncoder(tmp_path / "saved").predict(("a", "b")).shape == (3,)
    assert CrossEncoder(tmp_path / "saved", num_labels=3).activation_fn.dim == -1
    assert "mean nothing" not in caplog.text
    replaced = CrossEncoder(tmp_path / "saved", num_labels=1)
    assert type(replaced.activation_fn) is torch.nn.Sigmoid
    assert replaced.predict(("a", "b")).shape == ()
    assert "mean nothing before training" in caplog.text


def test_max_length(folder):
    encoder = CrossEncoder(folder, max_length=12)
    short = CrossEncoder(folder)
    assert short.max_length == 64
    long = "a man is playing a guitar " * 3
    with torch.no_grad():
        inputs = encoder.tokenizer("a dog", long, truncation=True, max_length=12, return_tensors="pt")
        expected = encoder.model.eval()(**inputs).logits.item()
    assert encoder.predict(("a dog", long), activation="logits") == pytest.approx(expected, abs=1e-5)
    assert short.predict(("a dog", long), activation="logits") != pytest.approx(expected, abs=1e-5)
    endless = build_tokenizer(model_max_length=int(1e30))
    assert CrossEncoder(build_model(), tokenizer=endless).max_length == 64


def test_saved_files_are_plain_ones(folder, tmp_path):
    encoder = CrossEncoder(folder, max_length=32)
    pairs = make_pairs(20)
    expected = encoder.predict(pairs)
    encoder.save_pretrained(tmp_path)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"}
    names |= {"special_tokens_map.json", "modules.json", "config_sentence_transformers.json", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    content = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert {"max_seq_length": 32, "do_lower_case": False}.items() <= content.items()
    reloaded = CrossEncoder(tmp_path)
    assert reloaded.max_length == 32
    np.testing.assert_array_equal(reloaded.predict(pairs), expected)


# -- ranking -----------------------------------------------------------------------------------------------------------


def test_rank(encoder):
    documents = [*SENTENCES, SENTENCES[0], ""]
    ranking = encoder.rank("a man", documents, return_documents=True)
    scores = encoder.predict([("a man", text) for text in documents])
    assert [entry["corpus_id"] for entry in ranking] == sorted(range(len(documents)), key=lambda i: -scores[i])
    assert all(entry["text"] == documents[entry["corpus_id"]] for entry in ranking)
    assert all(entry["score"] == scores[entry["corpus_id"]] for entry in ranking)
    assert encoder.rank("a man", documents, top_k=3) == [
        {name: entry[name] for name in ("corpus_id", "score")} for entry in ranking[:3]
    ]
    assert encoder.rank("a man", []) == []
    assert [entry["corpus_id"] for entry in encoder.rank("a", ["same"] * 9)] == list(range(9))
    logits = encoder.rank("a man", documents, activation="logits")
    assert logits[-1]["score"] < 0 or logits[0]["score"] > 1


def test_rank_refuses_what_has_no_order(encoder):
    with pytest.raises(ConfigurationError, match="num_labels=3"):
        CrossEncoder(build_model(3), tokenizer=build_tokenizer()).rank("a", ["b"])
    with pytest.raises(DataError, match="Document 1: expected a text, found None"):
        encoder.rank("a", ["b", None])
    with pytest.raises(DataError, match="The query: expected a text, found 3"):
        encoder.rank(3, ["b"])
    with pytest.raises(ConfigurationError, match="long_documents='all'"):
        encoder.rank("a", ["b"], long_documents="all")
    with pytest.raises(ConfigurationError, match="no room for a document"):
        encoder.rank("word " * 100, ["b"], long_documents="max")
    with pytest.raises(ConfigurationError, match="stride=100"):
        encoder.rank("a", ["b"], long_documents="max", stride=100)


def test_long_documents_are_scored_by_passages(folder):
    encoder = CrossEncoder(folder, max_length=16)
    words = " ".join(SENTENCES[:6]).split()
    documents = [" ".join(words), "a dog", " ".join(words[::-1]), ""]
    room = 16 - len(encoder.tokenizer(["a man"], [""])["input_ids"][0])  # alone, an empty text is no second one
    tokens = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    assert len(tokens[0]) > 2 * room

    def by_hand(how, overlap):
        scores = []
        for ids in tokens:
            parts, start = [], 0
            while True:
                parts.append(ids[start : start + room])
                if start + room >= len(ids):
                    break
                start += room - overlap
            texts = [encoder.tokenizer.decode(part) for part in parts]
            scores.append(how(encoder.predict([("a man", text) for text in texts], activation="logits")))
        return np.array(scores)

    for name, how in {"max": np.max, "mean": np.mean, "first": lambda scores: scores[0]}.items():
        for stride in (None, 0, 3):
            ranking = encoder.rank("a man", documents, long_documents=name, stride=stride, activation="logits")
            scores = {entry["corpus_id"]: entry["score"] for entry in ranking}
            expected = by_hand(how, room // 4 if stride is None else stride)
            np.testing.assert_allclose([scores[i] for i in range(4)], expected, atol=1e-5, err_msg=f"{name} {stride}")


# -- streams -----------------------------------------------------------------------------------------------------------


def test_streams_give_the_same_scores_in_order(saved):
    encoder, pairs = CrossEncoder(saved), make_pairs(500)
    expected = encoder.predict(pairs)
    for window in (1, 64, 10_000):
        streamed = np.array(list(encoder.predict_iter(iter(pairs[: 30 if window == 1 else 500]), window=window)))
        np.testing.assert_allclose(streamed, expected[: len(streamed)], atol=1e-6)


def test_streams_start_again_at_a_window_to_the_same_bytes(encoder):
    pairs = make_pairs(100)
    whole = np.array(list(encoder.predict_iter(pairs, window=20)))
    np.testing.assert_array_equal(list(encoder.predict_iter(pairs[40:], window=20)), whole[40:])


def test_streams_read_no_further_than_two_windows_ahead(encoder):
    read = []
    scores = encoder.predict_iter(((read.append(i) or ("a", str(i))) for i in range(10_000)), window=10)
    next(scores)
    assert len(read) == 20
    for _ in range(10):
        next(scores)
    assert len(read) == 30
    scores.close()


def test_streams_return_memory_between_windows(encoder, monkeypatch):
    returned = []
    monkeypatch.setattr("cross_trainer.scoring.engine._return_freed_memory", lambda: returned.append(True))
    list(encoder.predict_iter(make_pairs(25), window=10))
    assert len(returned) == 2
    encoder.predict(make_pairs(25))
    assert len(returned) == 2  # what fits a window doesn't wait for it


def tokenising_threads() -> int:
    return sum(thread.name.startswith("tokenise") for thread in threading.enumerate())


def test_streams_leave_no_thread_and_hand_on_errors(encoder):
    scores = encoder.predict_iter((("a", str(i)) for i in range(1000)), window=10)
    next(scores)
    assert tokenising_threads() == 1
    scores.close()
    assert tokenising_threads() == 0

    def failing():
        yield from [("a", "b")] * 15
        raise OSError("disk gone")

    got = []
    with pytest.raises(OSError, match="disk gone"):
        got.extend(encoder.predict_iter(failing(), window=10))
    with pytest.raises(DataError, match="Row 25, text 2: expected a text, found None"):
        list(encoder.predict_iter([("a", "b")] * 25 + [("a", None)], window=10))
    assert tokenising_threads() == 0


def test_errors_of_the_tokenising_thread_surface(folder):
    encoder = CrossEncoder(folder)
    tokenizer = encoder.tokenizer

    class Failing:
        pad_token_id, pad_token_type_id, padding_side, is_fast, truncation_side = 0, 0, "right", True, "right"

        def __call__(self, first, second, **options):
            if "bad" in first:
                raise RuntimeError("can't tokenise")
            return tokenizer(first, second, **options)

    encoder.tokenizer = Failing()
    with pytest.raises(RuntimeError, match="can't tokenise"):
        list(encoder.predict_iter([("a", "b")] * 50 + [("bad", "b")] * 50, window=10))
    assert tokenising_threads() == 0


def test_two_threads_may_score_at_once(folder):
    encoder, pairs = CrossEncoder(folder), make_pairs(300)
    expected = encoder.predict(pairs)
    results: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: encoder.predict(pairs)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in results.values():
        np.testing.assert_array_equal(scores, expected)
    assert len(results) == 4


def test_threads_with_other_lengths_and_one_tokenizer():
    tokenizer = build_tokenizer()
    encoders = [CrossEncoder(build_model(), tokenizer=tokenizer, max_length=length) for length in (12, 40)]
    pairs = [(f"{a} {b}", f"{b} {a}") for a, b in zip(SENTENCES, SENTENCES[::-1], strict=True)]
    documents = [" ".join(SENTENCES), " ".join(SENTENCES[::-1]), "a dog"]

    def results(encoder):
        return encoder.predict(pairs).tolist(), encoder.rank("a man", documents, long_documents="max")

    expected, wrong = [results(encoder) for encoder in encoders], []

    def work(index):
        wrong.extend(results(encoders[index]) != expected[index] for _ in range(60))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(wrong), sum(wrong)) == (240, 0)


@pytest.mark.parametrize("options", [{}, {"quantize": "int8"}, {"padding_free": False}, {"dtype": "bfloat16"}])
def test_copies_score_alike(options):
    import joblib

    encoder, pairs = CrossEncoder(build_model(), tokenizer=build_tokenizer(), **options), make_pairs(30)
    expected = encoder.predict(pairs)
    size = len(pickle.dumps(CrossEncoder(build_model(), tokenizer=build_tokenizer(), **options)))
    assert len(pickle.dumps(encoder)) < 1.05 * size  # the view that it scores with stays here
    for copied in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        np.testing.assert_array_equal(copied.predict(pairs), expected)
        copied.model.classifier.weight.data.zero_()
    np.testing.assert_array_equal(encoder.predict(pairs), expected)
    for scores in joblib.Parallel(2, backend="loky")(joblib.delayed(encoder.predict)(pairs) for _ in range(2)):
        np.testing.assert_allclose(scores, expected, atol=1e-6)


# -- order by logits ---------------------------------------------------------------------------------------------------


def confident(bias: float = 25.0, **config) -> CrossEncoder:
    """An encoder whose sigmoid is 1 in float32 for every pair."""
    model = build_model(**config)
    torch.nn.init.constant_(model.classifier.bias, bias)
    return CrossEncoder(model, tokenizer=build_tokenizer())


MANY = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]


@pytest.mark.parametrize("bias", [0.0, 14.0, 25.0, 60.0])
def test_rank_goes_by_logits(bias):
    encoder = confident(bias)
    logits = encoder.predict([("a man", text) for text in MANY], activation="logits")
    ranking = encoder.rank("a man", MANY)
    assert [entry["corpus_id"] for entry in ranking] == np.argsort(-logits, kind="stable").tolist()
    scores = encoder.predict([("a man", text) for text in MANY])
    assert [entry["score"] for entry in ranking] == [scores[entry["corpus_id"]] for entry in ranking]
    assert (len(set(scores.tolist())) == 1) == (bias > 20)


@pytest.mark.parametrize("how", ["max", "first", "mean"])
def test_long_documents_go_by_logits_too(how):
    encoder = confident()
    encoder.max_length = 16
    documents = [f"{text} {text} {other}" for text, other in zip(MANY, MANY[::-1], strict=True)][:40]
    by_logits = encoder.rank("a man", documents, long_documents=how, activation="logits")
    ranking = encoder.rank("a man", documents, long_documents=how)
    assert {entry["score"] for entry in ranking} == {1.0}
    assert [entry["corpus_id"] for entry in ranking] == [entry["corpus_id"] for entry in by_logits]


def test_other_activations_decide_themselves():
    encoder = confident(0.0)
    logits = encoder.predict([("a man", text) for text in MANY], activation="logits")

    def ranked(activation):
        return [entry["corpus_id"] for entry in encoder.rank("a man", MANY, activation=activation)]

    assert ranked(torch.neg) == np.argsort(logits, kind="stable").tolist()
    assert ranked(torch.abs) == np.argsort(-np.abs(logits), kind="stable").tolist()
    assert ranked(lambda values: torch.sigmoid(values + 60)) == np.argsort(-logits, kind="stable").tolist()
    with pytest.raises(ConfigurationError, match="made 2 scores of a pair, which have no order"):
        ranked(lambda values: torch.cat([values, values], 1))


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, "2", float("nan")])
def test_top_k_is_a_number_of_documents(encoder, top_k):
    with pytest.raises(ConfigurationError, match=r"top_k=.*: expected a whole number, 1 or more"):
        encoder.rank("a man", SENTENCES, top_k=top_k)


@pytest.mark.parametrize("top_k", [2, np.int64(2), 100])
def test_top_k(encoder, top_k):
    assert len(encoder.rank("a man", SENTENCES, top_k=top_k)) == min(top_k, len(SENTENCES))


COUNTS = {
    "batch_size": lambda value: confident().predict(make_pairs(5), batch_size=value),
    "window": lambda value: list(confident().predict_iter(make_pairs(5), window=value)),
    "max_tokens": lambda value: CrossEncoder(build_model(), tokenizer=build_tokenizer(), max_tokens=value),
}


@pytest.mark.parametrize("argument", COUNTS)
@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_counts_are_whole_numbers(argument, value):
    with pytest.raises(ConfigurationError, match=f"{argument}=.*: expected a whole number, 1 or more"):
        COUNTS[argument](value)


def test_nan_is_mentioned_and_comes_last(caplog):
    model, tokenizer = build_model(), build_tokenizer()
    model.bert.embeddings.word_embeddings.weight.data[tokenizer("guitar")["input_ids"][1]] = float("nan")
    encoder = CrossEncoder(model, tokenizer=tokenizer)
    documents = ["a guitar", "a dog", "the guitar", "a man"]
    ranking = encoder.rank("who", documents)
    assert {entry["corpus_id"] for entry in ranking[:2]} == {1, 3}
    assert [entry["corpus_id"] for entry in ranking[2:]] == [0, 2]
    assert np.isnan([entry["score"] for entry in ranking[2:]]).all()
    assert caplog.text.count("2 scores are not finite, the first one of the pair ('who', 'a guitar')") == 1
    caplog.clear()
    list(encoder.predict_iter([("a", "a dog")] * 9 + [("a", "guitar")] * 3, window=4))
    assert "3 scores are not finite, the first one of the pair ('a', 'guitar')" in caplog.text
    caplog.clear()
    encoder.predict([("a", "a dog")])
    assert "finite" not in caplog.text


# -- other libraries' rows ---------------------------------------------------------------------------------------------


def forms_of_rows(pairs):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    columns = {"question": [a for a, _ in pairs], "answer": [b for _, b in pairs]}
    rows, frame = datasets.Dataset.from_dict(columns), pandas.DataFrame(columns)
    return {
        **{f"{kind} format": rows.with_format(kind) for kind in ("numpy", "pandas", "arrow", "torch")},
        "numpy stream": rows.to_iterable_dataset().with_format("numpy"),
        "pandas stream": rows.to_iterable_dataset().with_format("pandas"),
        "some columns": rows.add_column("note", ["x"] * len(pairs)).with_format("pandas", columns=list(columns)),
        "transform": rows.with_transform(lambda batch: {**batch}),
        "frame": frame,
        "shifted frame": frame.set_index(np.arange(len(pairs)) + 7),
        "frame without names": pandas.DataFrame(pairs),
        "records": frame.to_records(index=False),
        "series": [row for _, row in frame.iterrows()],
        "columns of series": dict(frame.items()),
        "arrow table": pyarrow.table(columns),
        "arrow columns": {name: pyarrow.array(values) for name, values in columns.items()},
        "chunked columns": {name: pyarrow.chunked_array([values]) for name, values in columns.items()},
        "numpy texts": [tuple(map(np.str_, pair)) for pair in pairs],
        "numpy columns": {name: np.array(values) for name, values in columns.items()},
        # From NumPy 2 on.
        **(
            {"string type": np.array(pairs, dtype=np.dtypes.StringDType())} if hasattr(np.dtypes, "StringDType") else {}
        ),
    }


def test_rows_of_other_libraries(encoder):
    pairs = [(f"{a}?", b) for a, b in zip(SENTENCES, SENTENCES[::-1], strict=True)]
    expected = encoder.predict(pairs)
    for name, rows in forms_of_rows(pairs).items():
        np.testing.assert_array_equal(encoder.predict(rows), expected, err_msg=name)
    for name, rows in forms_of_rows(pairs).items():
        np.testing.assert_array_equal(list(encoder.predict_iter(rows)), expected, err_msg=name)


def test_documents_of_other_libraries(encoder):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    column = datasets.Dataset.from_dict({"text": SENTENCES})
    expected = encoder.rank("a man", SENTENCES, return_documents=True)
    for documents in (
        *(np.array(SENTENCES), pandas.Series(SENTENCES, index=range(5, 17)), pyarrow.array(SENTENCES)),
        *(column["text"], column.with_format("numpy")["text"], iter(SENTENCES), tuple(SENTENCES)),
    ):
        ranking = encoder.rank(np.str_("a man"), documents, return_documents=True)
        assert ranking == expected
        assert {type(entry["text"]) for entry in ranking} == {str}


@pytest.mark.parametrize("documents", ["a dog", {"d1": "a dog"}, datasets.Dataset.from_dict({"text": ["a dog"]})])
def test_what_is_no_list_of_documents(encoder, documents):
    with pytest.raises(DataError, match=f"documents is a {type(documents).__name__}: expected the texts themselves"):
        encoder.rank("a man", documents)


def test_splits_are_no_columns(encoder):
    rows = datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]})
    with pytest.raises(
        DataError, match=r"Expected one data set, found the splits \['train', 'test'\].*rows\['train'\]"
    ):
        encoder.predict(datasets.DatasetDict({"train": rows, "test": rows}))


def test_several_devices_score_as_one(encoder):
    rows = [(first, second) for first in SENTENCES for second in SENTENCES]
    scores = encoder.predict(rows)
    assert np.array_equal(encoder.predict(rows, devices=["cpu", "cpu", "cpu"]), scores)
    assert np.array_equal(encoder.predict(rows[:1], devices=["cpu", "cpu"]), encoder.predict(rows[:1]))
    windows = encoder.score_windows(rows, 50, devices=["cpu", "cpu"])
    assert np.array_equal(
        np.concatenate(list(windows))[:, 0], np.concatenate(list(encoder.score_windows(rows, 50)))[:, 0]
    )
    with pytest.raises(ConfigurationError, match="expected a list of devices"):
        encoder.predict(rows, devices="cpu")


def test_scores_dont_depend_on_where_weights_lie_in_a_file(tmp_path, encoder):
    from safetensors.torch import load_file, save_file

    encoder.save_pretrained(tmp_path)
    rows = [(first, second) for first in SENTENCES for second in SENTENCES]
    path, found = tmp_path / "model.safetensors", []
    for length in range(0, 64, 8):
        save_file(load_file(path), path, metadata={"format": "pt", "note": "x" * length})
        loaded = CrossEncoder(tmp_path)
        assert not any(parameter.data_ptr() % 64 for parameter in loaded.model.parameters())
        found.append(loaded.predict(rows))
    assert all(np.array_equal(scores, found[0]) for scores in found)
