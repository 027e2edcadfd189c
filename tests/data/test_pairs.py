"""Training and scoring tokenise pairs by one function, which is compared here with plain loops over tokens."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

from cross_trainer import CrossEncoder, CrossEncoderTrainer, DataError, PairCollator
from cross_trainer.data.columns import check_text
from cross_trainer.data.pairs import TRUNCATIONS, encode_pairs, pad_pairs, read_pairs

LONG = "one two three four five six seven eight nine ten"
EMOJI = "🎸🎻🥁 👩‍👩‍👧‍👦 漢字かな交じり文 한국어 ü"
PAIRS = [
    (LONG, "a man"),
    ("a man", LONG),
    (LONG, LONG),
    ("a", "b"),
    (LONG, ""),
    ("", LONG),
    ("", ""),
    (EMOJI * 3, "a dog"),
    ("a dog", EMOJI * 3),
    (EMOJI, EMOJI * 2),
]


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer over bytes, as RoBERTa's and GPT-2's are, so that a token may be a part of a character."""
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", *sorted(alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **special)


def alphabet() -> list[str]:
    return pre_tokenizers.ByteLevel.alphabet()


TOKENIZERS = {
    "word pieces": build_tokenizer,
    "bytes": byte_level,
    "slow bytes": ByT5Tokenizer,
    "slow characters": CanineTokenizer,
}


def alone(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def by_hand(tokenizer, pair, limit, truncation):
    """How many tokens of either text remain."""
    counts = [len(alone(tokenizer, text)) for text in pair]
    room = limit - tokenizer.num_special_tokens_to_add(pair=True)
    while sum(counts) > room:
        if truncation == "longest_first":
            counts[0 if counts[0] > counts[1] else 1] -= 1
            continue
        given, protected = (0, 1) if truncation == "only_first" else (1, 0)
        counts[given if counts[given] > 1 or (counts[given] == 1 and counts[protected] == 0) else protected] -= 1
    return counts


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("limit", [12, 20, 33])
def test_truncation_drops_whole_tokens_of_the_right_text(name, truncation, limit):
    tokenizer = TOKENIZERS[name]()
    encoded = encode_pairs(tokenizer, PAIRS, limit, truncation)
    whole = encode_pairs(tokenizer, PAIRS)
    assert encoded.lengths.tolist() == [len(ids) for ids in encoded.features["input_ids"]]
    for row, pair in enumerate(PAIRS):
        first, second = (alone(tokenizer, text) for text in pair)
        counts = by_hand(tokenizer, pair, limit, truncation)
        if truncation == "longest_first":  # which of two equally long texts gives way first is the tokenizer's affair
            assert encoded.lengths[row] == min(whole.lengths[row], limit)
            continue
        kept = encode_pairs_of_ids(tokenizer, first[: counts[0]], second[: counts[1]])
        assert encoded.features["input_ids"][row] == kept
        assert encoded.truncated[row] == (counts != [len(first), len(second)])
    assert encoded.truncated == (whole.lengths > limit).tolist()


def encode_pairs_of_ids(tokenizer, first, second):
    """The tokenizer's own special tokens around tokens of two texts."""
    if not tokenizer.is_fast:
        return tokenizer.build_inputs_with_special_tokens(first, second)
    cls, sep, doubled = (
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        "token_type_ids" not in tokenizer.model_input_names,
    )
    return [cls, *first, sep, *([sep] if doubled else []), *second, sep]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pairs_that_fit_are_the_tokenizers_own(name):
    tokenizer = TOKENIZERS[name]()
    expected = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True, return_tensors="pt")
    for truncation in TRUNCATIONS:
        batch = pad_pairs(tokenizer, encode_pairs(tokenizer, PAIRS, 2000, truncation).features)
        assert all(torch.equal(batch[key], expected[key]) for key in batch)
    longest = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], truncation="longest_first", max_length=20)
    assert encode_pairs(tokenizer, PAIRS, 20).features["input_ids"] == longest["input_ids"]


def test_a_tokenizer_that_cuts_on_the_left_keeps_the_ends():
    tokenizer = build_tokenizer()
    tokenizer.truncation_side = "left"
    (ids,) = encode_pairs(tokenizer, [("a man", LONG)], 12, "only_second").features["input_ids"]
    words = alone(tokenizer, LONG)
    assert ids == encode_pairs_of_ids(tokenizer, alone(tokenizer, "a man"), words[-7:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers_own(side):
    tokenizer = build_tokenizer(padding_side=side)
    features = encode_pairs(tokenizer, PAIRS[:4]).features
    expected = tokenizer.pad({"input_ids": features["input_ids"]}, return_tensors="pt")
    batch = pad_pairs(tokenizer, features)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    some = pad_pairs(tokenizer, features, rows=[3, 0], width=50)
    assert some["input_ids"].shape == (2, 50)
    assert some["attention_mask"].sum(1).tolist() == [len(features["input_ids"][row]) for row in (3, 0)]


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("given_by", ["argument", "folder"])
def test_training_and_scoring_see_the_same_tokens(tmp_path, truncation, given_by):
    rows = [{"a": a, "b": b, "label": index % 2} for index, (a, b) in enumerate(PAIRS[:6])]
    collator = PairCollator(build_tokenizer(), max_length=14, truncation=truncation)
    from training.test_trainer import arguments

    trainer = CrossEncoderTrainer(
        build_model(), arguments(tmp_path, num_train_epochs=1), train_dataset=rows, data_collator=collator
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    trained_on = collator(rows)["input_ids"]
    encoder = CrossEncoder(tmp_path / "saved")
    if given_by == "argument":
        encoder = CrossEncoder(trainer.model, tokenizer=build_tokenizer(), max_length=14, truncation=truncation)
    encoded = encode_pairs(encoder.tokenizer, PAIRS[:6], encoder.max_length, encoder.truncation)
    assert torch.equal(pad_pairs(encoder.tokenizer, encoded.features)["input_ids"], trained_on)
    logits = trainer.predict(rows).predictions[:, 0]
    np.testing.assert_allclose(encoder.predict(PAIRS[:6], activation="logits"), logits, atol=1e-5)
    ranking = encoder.rank(LONG, [LONG, "a man"], activation="logits")
    expected = encoder.predict([(LONG, LONG), (LONG, "a man")], activation="logits")
    assert [entry["score"] for entry in ranking] == sorted(expected.tolist(), reverse=True)
    encoder.save_pretrained(tmp_path / "again")
    assert CrossEncoder(tmp_path / "again").truncation == truncation


def test_a_model_trained_on_goes_by_its_last_training(tmp_path):
    """What a folder says of truncation doesn't outlive a training that does otherwise."""
    from training.test_trainer import arguments

    rows = [{"a": a, "b": b, "label": index % 2} for index, (a, b) in enumerate(PAIRS[:6])]
    model = build_model()
    for truncation in ("only_second", "longest_first"):
        collator = PairCollator(build_tokenizer(), truncation=truncation)
        trainer = CrossEncoderTrainer(model, arguments(tmp_path), train_dataset=rows, data_collator=collator)
        trainer.save_model(tmp_path / "saved")
        assert CrossEncoder(tmp_path / "saved").truncation == truncation
    again = CrossEncoderTrainer(str(tmp_path / "saved"), arguments(tmp_path), train_dataset=rows)
    assert again.data_collator.truncation == "longest_first"


def test_what_was_trained_on_decides_which_columns_are_scored(tmp_path):
    from training.test_trainer import arguments

    rows = [{"x": "a man", "other": "a dog", "y": LONG, "label": index % 2} for index in range(4)]
    collator = PairCollator(build_tokenizer(), columns=("x", "y"))
    trainer = CrossEncoderTrainer(build_model(), arguments(tmp_path), train_dataset=rows, data_collator=collator)
    trainer.save_model(tmp_path / "saved")
    encoder = CrossEncoder(tmp_path / "saved")
    expected = encoder.predict([("a man", LONG)])
    np.testing.assert_allclose(encoder.predict(rows[:1]), expected)
    np.testing.assert_allclose(list(encoder.predict_iter(rows[:1])), expected)
    np.testing.assert_allclose(encoder.predict(rows[:1], columns=("x", "other")), encoder.predict([("a man", "a dog")]))
    np.testing.assert_allclose(encoder.predict([{"q": "a man", "d": LONG}]), expected)
    further = [{"x": "a man", "other": "a dog", "y": LONG, "note": "z", "label": 1}]
    np.testing.assert_allclose(trainer.predict(further).predictions, trainer.predict(rows[:1]).predictions, atol=1e-6)


def test_encoders_of_different_lengths_may_share_a_tokenizer():
    tokenizer, wrong = build_tokenizer(), []

    def work(limit):
        for _ in range(60):
            lengths = encode_pairs(tokenizer, [(LONG, LONG)] * 3, limit).lengths
            wrong.extend(lengths[lengths != limit])

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (8, 12, 16, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pickle.loads(pickle.dumps(PairCollator(tokenizer, max_length=8))).max_length == 8


@pytest.mark.parametrize("text", ["\ud83d", "fine \udc00 not"])
def test_half_a_surrogate_pair_is_named(text):
    with pytest.raises(DataError, match=r"Column 'a', row 3: the text .* half of a surrogate pair"):
        check_text(text, "Column 'a', row 3")
    with pytest.raises(DataError, match="Row 1, text 2: the text"):
        list(read_pairs([("a", "b"), ("a", text)]))
    with pytest.raises(DataError, match="Column 'text_1': the text"):
        PairCollator(build_tokenizer())([(text, "b", 1)])
    with pytest.raises(DataError, match="The query: the text"):
        CrossEncoder(build_model(), tokenizer=build_tokenizer()).rank(text, ["b"])
    assert check_text("🎸", "x") == "🎸"
