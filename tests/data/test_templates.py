"""A pair in a template: the same tokens as by hand, cut in the document alone, in training and in scoring."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import build_model, build_tokenizer
from datasets import Dataset
from rerankers import build, save
from rerankers import build_tokenizer as build_bytes
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from cross_trainer.commands.evaluate import measure
from cross_trainer.data.collator import PairCollator
from cross_trainer.data.pairs import cut_into_passages, encode_pairs
from cross_trainer.data.templates import PUBLISHED, Template
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.saved.chat import read_chat_template, serving_format, write_chat_template
from cross_trainer.scoring.cross_encoder import CrossEncoder
from cross_trainer.training.trainer import CrossEncoderTrainer

TEXT = "Do: {instruction}\nQ: {query}?\nA: {document}!\n=>"
PAIR = ("why is the sky blue", "it scatters light 漢字 🎸 and so on")


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encoded(pair=PAIR, template=TEXT, **options):
    return encode_pairs(build_bytes(), [pair], template=Template.of(template), **options).features["input_ids"][0]


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_one_text_is_tokenised_as_a_whole_and_parts_one_by_one():
    tokenizer, pair = build_bytes(), ("what?", "no?")
    whole = "Q: what?\n\nA: no?\n"
    assert encoded(pair, "Q: {query}\n\nA: {document}\n") == ids(tokenizer, whole)
    parts = ["Q: {query}", "\n\n", "A: {document}", "\n"]
    assert encoded(pair, parts) == [
        token for part in parts for token in ids(tokenizer, part.format(query="what?", document="no?"))
    ]
    assert encoded((*pair, "be kind")) == ids(
        tokenizer, TEXT.format(query="what?", document="no?", instruction="be kind")
    )


def test_features_of_a_model_with_segments():
    features = encode_pairs(
        build_tokenizer(), [("a man", "a dog")], template=Template.of("[CLS] {query} [SEP] {document}")
    )
    assert features.features["token_type_ids"] == [[0] * len(features.features["input_ids"][0])]
    assert encode_pairs(build_tokenizer(), [], template=Template.of("{query} {document}")).lengths.tolist() == []


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("truncation", ["only_second", "only_first", "longest_first"])
def test_only_the_texts_are_cut(truncation, side):
    tokenizer = build_bytes()
    tokenizer.truncation_side = side
    template = Template.of(TEXT.replace("{instruction}", "answer"))
    full = encode_pairs(tokenizer, [PAIR], template=template).features["input_ids"][0]
    fixed = encode_pairs(tokenizer, [("", "")], template=template).features["input_ids"][0]
    for limit in range(len(fixed) + 2, len(full)):
        found = encode_pairs(tokenizer, [PAIR], limit, truncation, template)
        tokens = found.features["input_ids"][0]
        assert (len(tokens), found.truncated) == (limit, [True])
        text = tokenizer.decode(tokens)
        assert text.startswith("Do: answer\nQ:")
        assert text.endswith("!\n=>")
        if truncation == "only_second" and limit > len(full) - 8:
            assert f"Q: {PAIR[0]}?\nA:" in text
    tokenizer.truncation_side = "right"


def test_the_query_gives_way_last():
    tokenizer, template = build_bytes(), Template.of("Q: {query} A: {document} =>")
    fixed = len(encode_pairs(tokenizer, [("", "")], template=template).features["input_ids"][0])
    found = encode_pairs(tokenizer, [PAIR], fixed + 3, "only_second", template).features["input_ids"][0]
    assert tokenizer.decode(found).startswith("Q: w")
    assert len(found) == fixed + 3


def test_longest_first_cuts_as_tokenizers_do():
    """The cap is far away, so that the general path must do what the tokenizer does by itself."""
    tokenizer = build_tokenizer()
    pairs = [("a man is here " * first, "the dog runs " * second) for first in range(1, 5) for second in range(1, 5)]
    for limit in range(4, 40):
        plain = encode_pairs(tokenizer, pairs, limit)
        capped = encode_pairs(tokenizer, pairs, limit, max_query_length=999)
        assert dict(plain.features) == dict(capped.features)
        assert plain.truncated == capped.truncated


@pytest.mark.parametrize("template", [None, "Q: {query} A: {document}"])
def test_the_cap_of_the_query(template):
    tokenizer = build_bytes()
    options = {"template": None if template is None else Template.of(template)}
    pair = ("blue sky " * 9, "it scatters")
    full = encode_pairs(tokenizer, [pair], **options).features["input_ids"][0]
    capped = encode_pairs(tokenizer, [pair], max_query_length=4, **options)
    assert len(full) > len(capped.features["input_ids"][0])
    assert capped.truncated == [True]
    short = encode_pairs(tokenizer, [("blue", "it scatters")], max_query_length=4, **options)
    assert short.truncated == [False]
    start = 0 if template is None else len(ids(tokenizer, "Q:"))
    assert capped.features["input_ids"][0][start : start + 4] == full[start : start + 4]
    both = encode_pairs(tokenizer, [pair], 12, "only_second", max_query_length=4, **options)
    assert both.features["input_ids"][0][: start + 4] == full[: start + 4]


def test_passages_fit_into_the_template():
    tokenizer, template, text = build_bytes(), Template.of("qwen3-reranker"), "the sky scatters light. " * 60
    (passages,) = cut_into_passages(tokenizer, "why?", [text], 160, 5, template, 4)
    found = encode_pairs(tokenizer, [("why?", passage) for passage in passages], 160, "only_second", template)
    assert len(passages) > 3
    assert not any(found.truncated)
    assert passages[-1].endswith("light. ")


# -- what is wrong with it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Query: {query}", r"has no \{document\}"),
        ("Document: {document}", r"has no \{query\}"),
        ("{query} {doc} {document}", r"the place \{doc\}"),
        ("{query} {document} {query}", r"\{query\} more than once"),
        ("qwen4-reranker", "'qwen4-reranker' is unknown: expected .*'qwen3-reranker'"),
        ("{query} {document}<|endoftext|>", "ends with '<|endoftext|>'"),
        ("{query} {document}" + " long" * 60, "max_length=40 leaves no room"),
    ],
)
def test_templates_that_are_none(template, message):
    with pytest.raises(ConfigurationError, match=message):
        PairCollator(build_bytes(), max_length=40, template=template)


def test_instructions_without_a_place(tmp_path):
    for options in ({}, {"template": "{query} {document}"}):
        with pytest.raises(ConfigurationError, match=r"instruction='Judge\.' has no place to stand in"):
            PairCollator(build_bytes(), instruction="Judge.", **options)
        with pytest.raises(ConfigurationError, match=r"instruction='Judge\.' has no place to stand in"):
            CrossEncoder(save(tmp_path, build()), tokens=("yes",), instruction="Judge.", **options)
    with pytest.raises(DataError, match=r"'a', 'b'.* has no instruction"):
        PairCollator(build_bytes(), template=TEXT)([("a", "b", 1)])
    with pytest.raises(DataError, match="instruction and template take"):
        PairCollator(build_bytes(), max_length=60, template=TEXT, instruction="a")(
            [{"query": "a", "document": "b", "instruction": "a b " * 50}]
        )
    with pytest.raises(DataError, match="Column 'instruction', row 1: expected a text, found 3"):
        train(tmp_path, [ROWS[0], {**ROWS[0], "instruction": 3}])
    with pytest.raises(ConfigurationError, match="max_query_length=0"):
        PairCollator(build_bytes(), max_query_length=0)


# -- chat templates ----------------------------------------------------------------------------------------------------

TEMPLATES = [
    *PUBLISHED.values(),
    Template.of('{query} says "yes" \\ { x } 漢字 🎸\n{document}'),
    Template(("Q {query}\n\n", "D {document}"), strip=True),
    Template(("I {instruction} {query} {document}",), instruction='say "so"\n', strip=True),
]


@pytest.mark.parametrize("template", TEMPLATES, ids=str)
def test_a_chat_template_and_back(template):
    tokenizer = build_bytes()
    tokenizer.chat_template = write_chat_template(template.to_dict())
    back = Template.of(read_chat_template(tokenizer, {"options": {}}))
    for texts in (PAIR, (*PAIR, "be kind"), (" a\n", " b ")):
        if len(texts) < 3 or template.takes_instruction:
            assert "".join(back.fill(*texts)) == "".join(template.fill(*texts))
    assert back.instruction == template.instruction
    tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template"),
        ("{{ messages[0].content }}", "doesn't put a message of the role 'query'"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "doesn't put|more than put"),
        ("{% for m in messages %}{{ m.content | replace('?', '.') }}{% endfor %}", "more than put"),
        ("{{ raise_exception('only users') }}", "only users"),
    ],
)
def test_chat_templates_that_are_none_for_pairs(chat_template, message):
    tokenizer = build_bytes()
    tokenizer.chat_template = chat_template
    with pytest.raises(ConfigurationError, match=message):
        read_chat_template(tokenizer, {"options": {}})
    tokenizer.chat_template = None


def test_what_a_server_is_told():
    text = serving_format(PUBLISHED["qwen3-reranker"].to_dict())
    assert "<Instruct>: {instruction}\n<Query>: {query}\n````\n" in text  # the first of two texts
    assert "Given a web search query" in text
    assert "Without an instruction" in serving_format(PUBLISHED["mxbai-rerank-v2"].to_dict())
    assert serving_format(None) is None


# -- training and scoring ----------------------------------------------------------------------------------------------

ROWS = [
    {
        "query": f"how do i cook {number}",
        "document": "boil it " * number,
        "label": number % 2,
        "instruction": f"be {number}",
    }
    for number in range(1, 9)
]


def train(folder, rows, **options):
    arguments = TrainingArguments(str(folder), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    given = {"template": TEXT, "instruction": "judge", "max_query_length": 5, **options}
    collator = PairCollator(build_tokenizer(), 60, **given)
    return CrossEncoderTrainer(build_model(), arguments, collator, train_dataset=rows)


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_what_was_trained_is_scored_and_measured(tmp_path, kind):
    rows = kind(ROWS)
    trainer = train(tmp_path, rows)
    assert trainer.plan.columns.instruction == "instruction"
    trainer.train()
    expected = trainer.predict(rows).predictions[:, 0]
    trainer.save_model()
    encoder = CrossEncoder(str(tmp_path))
    assert (encoder.truncation, encoder.max_query_length) == ("only_second", 5)
    assert encoder.template == Template((TEXT,), "judge")
    found = encoder.predict(rows, activation="logits")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    triples = [(row["query"], row["document"], row["instruction"]) for row in ROWS]
    np.testing.assert_allclose(encoder.predict(triples, activation="logits"), expected, atol=1e-5)
    columns = {name: [row[name] for row in ROWS] for name in ("instruction", "query", "document")}
    np.testing.assert_allclose(encoder.predict(columns, activation="logits"), expected, atol=1e-5)
    pairs = [triple[:2] for triple in triples]
    default = encoder.predict(pairs, activation="logits")
    assert np.abs(default - expected).max() > 1e-4
    other = CrossEncoder(str(tmp_path), instruction="be 3").predict(pairs, activation="logits")
    np.testing.assert_allclose(other[2], expected[2], atol=1e-5)
    assert other.shape == default.shape
    assert measure(encoder, rows)["loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"], abs=1e-5)
    ranked = encoder.rank(pairs[0][0], [pairs[0][1], "no"], long_documents="max")
    assert {entry["corpus_id"] for entry in ranked} == {0, 1}


def test_lists_of_documents_share_their_rows_instruction(tmp_path):
    rows = [
        {
            "query": row["query"],
            "documents": [row["document"], "no"],
            "labels": [1, 0],
            "instruction": row["instruction"],
        }
        for row in ROWS
    ]
    trainer = train(tmp_path, rows)
    items = trainer.rows_to_load(rows, 2, False)
    batch = trainer.data_collator([items[0], items[1]])
    flat = [(row["query"], text, row["instruction"]) for row in rows[:2] for text in row["documents"]]
    expected = encode_pairs(build_tokenizer(), flat, 60, "only_second", Template((TEXT,), "judge"), 5)
    assert batch["input_ids"].shape[0] == 4
    assert batch["attention_mask"].sum(1).tolist() == expected.lengths.tolist()


def test_a_column_of_that_name_is_a_text_where_no_template_takes_it(tmp_path):
    rows = [{"instruction": row["instruction"], "response": row["document"], "label": row["label"]} for row in ROWS]
    trainer = train(tmp_path, rows, template=None, instruction=None)
    assert (trainer.plan.columns.query, trainer.plan.columns.instruction) == ("instruction", None)


def test_fit_trains_in_the_template(tmp_path):
    encoder = CrossEncoder(
        build_model(), tokenizer=build_tokenizer(), template=TEXT, instruction="judge", max_query_length=3
    )
    samples = [(row["query"], row["document"], row["label"]) for row in ROWS]
    encoder.fit(
        DataLoader(samples, batch_size=4, collate_fn=list), epochs=1, output_path=tmp_path, show_progress_bar=False
    )
    again = CrossEncoder(str(tmp_path))
    assert (again.template, again.max_query_length) == (encoder.template, 3)
    pairs = [sample[:2] for sample in samples]
    np.testing.assert_allclose(again.predict(pairs), encoder.predict(pairs), atol=1e-6)
