"""Several data sets at once: each trained as it would be alone, mixed as asked for, and the same however it is cut."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import Dataset, DatasetDict, IterableDataset
from training.test_trainer import InfiniteLoss, arguments, lists, pairs, positives, weights
from transformers import TrainerCallback

from cross_trainer import (
    BinaryCrossEntropyLoss,
    ConfigurationError,
    CrossEncoder,
    CrossEncoderTrainer,
    DataError,
    InfoNCELoss,
    LambdaLoss,
    MSELoss,
    NotFiniteError,
    PairCollator,
    make_plans,
)


def several():
    return {"graded": pairs(21), "ranked": lists(7), "found": positives(9)}


def build(folder, train_dataset=None, model=None, trainer_options=None, **options):
    rows = several() if train_dataset is None else train_dataset
    negatives = 3 if isinstance(rows, dict) and "found" in rows else 0
    given = {"data_collator": PairCollator(build_tokenizer(), in_batch_negatives=negatives), **(trainer_options or {})}
    return CrossEncoderTrainer(
        model if model is not None else build_model(),
        arguments(folder, **{"optim": "sgd", **options}),
        train_dataset=rows,
        **given,
    )


def flat(parts):
    return list(itertools.chain.from_iterable(parts))


class Watch(TrainerCallback):
    """Which rows of which data set each update saw, and its loss."""

    def __init__(self, monkeypatch):
        self.updates = []
        step = CrossEncoderTrainer.training_step

        def watched(trainer, model, inputs, *others):
            name, rows = inputs.get("dataset"), inputs["row_numbers"].tolist()
            loss = step(trainer, model, inputs, *others)
            self.updates.append((name, rows, float(loss)))
            return loss

        monkeypatch.setattr(CrossEncoderTrainer, "training_step", watched)


def test_each_update_is_that_of_its_data_set_alone(tmp_path, monkeypatch):
    watch, start = Watch(monkeypatch), build_model(seed=1)
    state = {name: value.clone() for name, value in start.state_dict().items()}
    mixed = build(tmp_path, model=start)
    mixed.train()
    updates, rows = list(watch.updates), several()
    assert Counter(name for name, _, _ in updates) == {"graded": 3, "ranked": 1, "found": 2}
    for name, dataset in rows.items():
        assert sorted(flat(seen for each, seen, _ in updates if each == name)) == list(range(len(dataset)))
    alone = build_model()
    alone.load_state_dict(state)
    for step, (name, seen, loss) in enumerate(updates):
        rate = mixed.state.log_history[step]["learning_rate"]
        trainer = build(
            tmp_path,
            rows[name].select(seen),
            model=alone,
            trainer_options={
                "data_collator": PairCollator(build_tokenizer(), in_batch_negatives=3 if name == "found" else 0),
                "compute_loss_func": mixed.plans[name].loss,
            },
            learning_rate=rate,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
        )
        trainer.train()
        assert watch.updates[-1][2] == pytest.approx(loss, abs=1e-5)
        assert mixed.state.log_history[step][f"{name}_loss"] == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(weights(mixed.model), weights(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("streamed", [False, True])
def test_updates_are_independent_of_accumulation(tmp_path, streamed):
    rows, mixing = several(), {"graded": 2, "ranked": 1, "found": 1}
    if streamed:
        rows["graded"], rows["found"] = rows["graded"].to_iterable_dataset(), rows["found"].to_iterable_dataset()
    made = []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 9}
        trainer = build(tmp_path, rows, trainer_options={"mixing": mixing}, **options)
        trainer.train()
        made.append((weights(trainer.model), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    for found, losses in made[1:]:
        torch.testing.assert_close(found, made[0][0], rtol=0, atol=2e-6)
        np.testing.assert_allclose(losses, made[0][1], atol=2e-6)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_as_if_it_had_never_stopped(tmp_path, stream, workers):
    """In the middle of a pass over each data set, with swaps and dropout, bit for bit."""

    def resumable(folder):
        rows = {"graded": pairs(20), "ranked": lists(7)}
        if stream:
            rows["graded"] = rows["graded"].to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=8)
        return build(
            folder,
            rows,
            build_model(dropout=0.1),
            {"data_collator": PairCollator(build_tokenizer(), swap=True), "mixing": "even"},
            optim="adamw_torch",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=5,
            num_train_epochs=2,
            max_steps=12 if stream else -1,
            dataloader_num_workers=workers,
        )

    whole = resumable(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step >= 12
    for step in (5, 10):
        resumed = resumable(tmp_path / f"resumed-{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert torch.equal(weights(resumed.model), weights(whole.model)), step


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(tmp_path, workers, caplog):
    rows = {"graded": pairs(20).to_iterable_dataset(num_shards=4), "ranked": lists(7)}
    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    trainer = build(tmp_path, rows, trainer_options={"mixing": "even"}, dataloader_num_workers=workers, **options)
    trainer.train()
    alone = build(tmp_path, rows, trainer_options={"mixing": "even"}, **options)
    alone.train()
    assert torch.equal(weights(trainer.model), weights(alone.model))
    assert ("One worker reads the data sets instead of 2" in caplog.text) is (workers == 2)


MIXED = {
    "proportional": ("proportional", {"large": 12, "small": 3}),
    "even": ("even", {"large": 8, "small": 8}),
    "weights": ({"large": 1, "small": 4}, {"large": 3, "small": 12}),
    "a temperature": (2.0, {"large": 10, "small": 5}),
    "no temperature": (1, {"large": 12, "small": 3}),
    "hardly any": ({"large": 1000, "small": 1}, {"large": 15, "small": 1}),
}


@pytest.mark.parametrize("case", MIXED)
def test_how_often_data_sets_come(tmp_path, monkeypatch, case):
    """In two epochs: what is read to its end starts over in a new order, and what isn't goes on where it stopped."""
    watch, (mixing, expected) = Watch(monkeypatch), MIXED[case]
    rows = {"large": pairs(24), "small": pairs(5)}
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 0.0}
    trainer = build(tmp_path, rows, trainer_options={"mixing": mixing}, **options)
    trainer.train()
    count = sum(expected.values())
    assert trainer.state.global_step == 2 * count
    assert Counter(name for name, _, _ in watch.updates[:count]) == expected
    assert Counter(name for name, _, _ in watch.updates) == {name: 2 * times for name, times in expected.items()}
    for name, size in (("large", 24), ("small", 5)):
        seen = flat(numbers for each, numbers, _ in watch.updates if each == name)
        turns = [seen[start : start + size] for start in range(0, len(seen), size)]
        assert all(len(set(turn)) == len(turn) for turn in turns)
        assert len({tuple(turn) for turn in turns}) == len(turns)


def test_streams_are_drawn_by_weight(tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    rows = {"often": pairs(21).to_iterable_dataset(), "seldom": lists(7).to_iterable_dataset()}
    options = {"per_device_train_batch_size": 8, "max_steps": 60, "learning_rate": 0.0, "logging_steps": 100}
    build(tmp_path, rows, trainer_options={"mixing": {"often": 3, "seldom": 1}}, **options).train()
    names = Counter(name for name, _, _ in watch.updates)
    assert 37 <= names["often"] <= 53
    passes = [numbers for name, numbers, _ in watch.updates if name == "often"]
    assert [len(numbers) for numbers in passes[:6]] == [8, 8, 5, 8, 8, 5]


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length"])
def test_the_order_of_rows_is_that_of_the_arguments(tmp_path, monkeypatch, strategy):
    watch = Watch(monkeypatch)
    build(tmp_path, {"graded": pairs(24), "ranked": lists(7)}, train_sampling_strategy=strategy).train()
    seen = [rows for name, rows, _ in watch.updates if name == "graded"]
    if strategy == "sequential":
        assert flat(seen) == list(range(24))
    else:  # the first text has one to three sentences
        spread = [np.std([row % 3 for row in rows]) for rows in seen]
        assert sum(spread) < 3 * np.std([row % 3 for row in range(24)])
    assert sorted(flat(seen)) == list(range(24))


def test_what_follows_from_the_data_and_what_is_given(tmp_path):
    trainer = build(tmp_path)
    assert {name: plan.loss for name, plan in trainer.plans.items()} == {
        "graded": BinaryCrossEntropyLoss(),
        "ranked": LambdaLoss(),
        "found": InfoNCELoss(),
    }
    assert "name='ranked'" in repr(trainer.plans["ranked"])
    losses = {"graded": MSELoss(), "ranked": None, "found": None}
    trainer = build(tmp_path, trainer_options={"compute_loss_func": losses})
    assert (trainer.plans["graded"].loss, trainer.plans["ranked"].loss) == (MSELoss(), LambdaLoss())
    named = DatasetDict({"graded": pairs(9).rename_columns({"a": "x", "b": "y", "label": "z"}), "ranked": lists(3)})
    columns = PairCollator(build_tokenizer(), columns={"graded": ("x", "y", "z")})
    trainer = build(tmp_path, named, trainer_options={"data_collator": columns})
    assert trainer.plans["graded"].columns.label == "z"
    splits = {"a": DatasetDict({"train": pairs(9), "validation": pairs(4)}), "b": lists(3)}
    trainer = build(tmp_path, splits)
    assert (list(trainer.train_dataset), list(trainer.eval_dataset)) == (["a", "b"], ["a"])


def test_an_evaluation_follows_the_plan_of_its_name(tmp_path):
    held_out = {"graded": pairs(9), "ranked": lists(5).to_iterable_dataset(), "found": positives(5)}
    options = {"metric_for_best_model": "graded_spearman", "eval_strategy": "epoch", "save_strategy": "epoch"}
    given = {"eval_dataset": held_out, "compute_loss_func": {"graded": MSELoss(), "ranked": None, "found": None}}
    trainer = build(tmp_path, trainer_options=given, load_best_model_at_end=True, num_train_epochs=2, **options)
    trainer.train()
    metrics = trainer.evaluate()
    assert trainer.state.best_metric == pytest.approx(metrics["eval_graded_spearman"])
    for name, loss, collator in (
        ("graded", MSELoss(), PairCollator(build_tokenizer())),
        ("ranked", LambdaLoss(), PairCollator(build_tokenizer())),
        ("found", InfoNCELoss(), PairCollator(build_tokenizer(), in_batch_negatives=3)),
    ):
        alone = CrossEncoderTrainer(
            trainer.model, arguments(tmp_path), collator, several()[name], held_out[name], compute_loss_func=loss
        ).evaluate()
        found = {key.removeprefix(f"eval_{name}_"): value for key, value in metrics.items() if f"_{name}_" in key}
        quality = [key for key in alone if not any(word in key for word in ("time", "second", "epoch"))]
        assert quality
        assert {key: found[key.removeprefix("eval_")] for key in quality} == pytest.approx(
            {key: alone[key] for key in quality}
        )
    more = trainer.evaluate({"ranked": lists(4)}, metric_key_prefix="test")
    assert {"test_ranked_map", "test_ranked_loss"} <= set(more)
    assert len(trainer.predict(lists(6)).predictions) == 6  # known by its columns
    twins = build(
        tmp_path, {"a": pairs(9), "b": pairs(9)}, trainer_options={"compute_loss_func": {"a": MSELoss(), "b": None}}
    )
    with pytest.raises(ConfigurationError, match=r"could be like any of \['a', 'b'\].*evaluate\(\{name: rows\}\)"):
        twins.predict(pairs(3))
    with pytest.raises(ConfigurationError, match=r"columns \['c', 'd'\] is like none of \['a', 'b'\]"):
        twins.predict([{"c": "x", "d": "y"}])


def test_workers_that_outlive_an_evaluation_keep_its_plan(tmp_path):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    held_out = {"graded": pairs(6), "ranked": lists(5)}
    trainer = build(tmp_path, {"graded": pairs(9), "ranked": lists(5)}, None, {"eval_dataset": held_out}, **workers)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert {"eval_graded_spearman", "eval_ranked_map"} <= set(second)
    assert [first[f"eval_{name}_loss"] for name in held_out] == [second[f"eval_{name}_loss"] for name in held_out]


@pytest.mark.parametrize("max_tokens", [None, 40])
def test_padding_tokens_and_noise_work_as_for_one(tmp_path, max_tokens):
    def trained(padding_free, noise=None):
        options = {"padding_free": padding_free, "max_tokens": max_tokens}
        trainer = build(tmp_path, trainer_options=options, neftune_noise_alpha=noise)
        trainer.train()
        return weights(trainer.model)

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-5)
    assert not torch.equal(trained(True, 5.0), trained(True))


def test_a_saved_model_tells_of_all_of_them(tmp_path):
    rows = several()
    trainer = build(tmp_path, rows, trainer_options={"mixing": "even"})
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for part in ("### graded", "### ranked", "### found", "Loss of `ranked`: `LambdaLoss", "Mixing: `even`"):
        assert part in card, part
    assert "holds for pairs like those of `graded`; the model was also trained on `ranked`, `found`" in card
    assert "loss:LambdaLoss" in card
    for name, dataset in rows.items():
        with pytest.raises(DataError, match=r"was trained on|no label"):
            trainer.calibrate(dataset)
        assert len(trainer.plans[name].datasets) == 1
    scores = CrossEncoder(str(tmp_path)).predict([("a man", "a dog")])
    assert 0 < scores[0] < 1  # the first loss's
    with pytest.raises(ConfigurationError, match="needs one data set"):
        trainer.calibrate()


def test_a_model_by_name_gets_the_outputs_of_all(tmp_path):
    build_model().bert.save_pretrained(tmp_path / "pretrained")
    build_tokenizer().save_pretrained(tmp_path / "pretrained")
    name = str(tmp_path / "pretrained")
    classes = pairs(labels=["no", "yes", "maybe"] * 7)
    others = pairs(labels=["yes", "no", "yes"] * 7)
    plans = make_plans(name, {"first": classes, "second": others})
    assert plans["second"].config is plans["first"].config
    assert plans["second"].datasets[0].columns.label2id == {"maybe": 0, "no": 1, "yes": 2}
    for sets in ({"graded": pairs(), "classes": classes}, {"classes": classes, "graded": pairs()}):
        first, second = sets
        with pytest.raises(ConfigurationError, match=rf"Data set '{second}': its labels .* those of '{first}'"):
            make_plans(name, sets)
    with pytest.raises(
        ConfigurationError, match=r"Data set 'graded': its labels \(real\).*those of 'classes' \(class\)"
    ):
        build(tmp_path, {"classes": pairs(labels=[0, 1, 2] * 7), "graded": pairs()}, build_model(3))


def stream(rows=21):
    return pairs(rows).to_iterable_dataset()


REFUSED = {
    "a loss is missing": ({"compute_loss_func": {"graded": MSELoss()}}, {}, r"compute_loss_func lacks 'ranked'"),
    "a loss too many": (
        {"compute_loss_func": dict.fromkeys(("graded", "ranked", "rated"))},
        {},
        r"compute_loss_func has 'rated', which is no data set. The data sets trained on are \['graded', 'ranked'\]",
    ),
    "a weight is missing": ({"mixing": {"graded": 1}}, {}, "mixing lacks 'ranked'"),
    "a weight too many": ({"mixing": {"graded": 1, "ranked": 1, "x": 1}}, {}, "mixing has 'x'"),
    "no weight": ({"mixing": {"graded": 0, "ranked": 1}}, {}, "weight of 'graded' is 0.*leave the data set out"),
    "another word": (
        {"mixing": "round_robin"},
        {},
        "mixing='round_robin': expected 'proportional'.*differs from 'even'",
    ),
    "cold": ({"mixing": -1.0}, {}, "a temperature above 0"),
    "yes": ({"mixing": True}, {}, "mixing=True: expected"),
    "an evaluation too many": ({"eval_dataset": {"x": pairs(3)}}, {}, "eval_dataset has 'x'"),
    "an evaluation without a name": ({"eval_dataset": pairs(3)}, {}, "eval_dataset is one data set"),
    "columns too many": (
        {"data_collator": PairCollator(build_tokenizer(), columns={"x": ("a", "b")})},
        {},
        "columns has 'x'",
    ),
    "negatives for none": (
        {"data_collator": PairCollator(build_tokenizer(), in_batch_negatives=2)},
        {},
        r"all of the data sets \['graded', 'ranked'\] have labels",
    ),
    "somebody's collator": ({"data_collator": list}, {}, "Several data sets need a PairCollator"),
    "rebalanced": ({}, {"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy='batch_rebalance'"),
    "dispatched": ({}, {"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True"),
    "the best of what": (
        {"eval_dataset": {"graded": pairs(3)}},
        {"metric_for_best_model": "spearman", "eval_strategy": "epoch"},
        r"metric_for_best_model='spearman' names none of the evaluation sets \['graded'\].*'graded_spearman'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_do_not_fit(tmp_path, case):
    given, options, message = REFUSED[case]
    given = {"data_collator": PairCollator(build_tokenizer()), **given}
    with pytest.raises(ConfigurationError, match=message):
        build(tmp_path, {"graded": pairs(), "ranked": lists()}, trainer_options=given, **options)


BAD_SETS = {
    "a stream's size": ({"a": stream(), "b": pairs()}, {"max_steps": 3}, "'a' is a stream, whose number isn't known"),
    "a stream's length": ({"a": stream(), "b": pairs()}, {"mixing": "even"}, "'a' is a stream.*set max_steps"),
    "a row": ({"a": pairs(), "b": pairs(3, [0.0, 5.0, 1.0])}, {}, "Data set 'b': Column 'label', row 1: label 5"),
    "nothing": ({}, {}, r"train_dataset has the names \[\]"),
    "no text": ({"a": pairs(), 3: pairs()}, {}, r"train_dataset has the names \['a', 3\]"),
    "splits alone": ({"validation": pairs(), "test": pairs()}, {}, "no 'train'"),
    "a row of a stream": (
        {"a": stream(), "b": IterableDataset.from_generator(lambda: iter([*pairs(1000), {"a": "x", "b": None}]))},
        {"mixing": {"a": 1, "b": 99}, "max_steps": 40, "per_device_train_batch_size": 64},
        "Data set 'b': Column '(b|label)', row 1000",
    ),
    "an update": ({"a": pairs(), "b": lists(7)}, {"dataloader_drop_last": True}, "nothing of the data set 'b'.*7 rows"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_data_sets_that_do_not_fit(tmp_path, case):
    rows, options, message = BAD_SETS[case]
    mixing = options.get("mixing", "proportional")
    options = {"logging_steps": 1000, **{name: value for name, value in options.items() if name != "mixing"}}
    with pytest.raises((ConfigurationError, DataError), match=message):
        build(
            tmp_path, rows, None, {"mixing": mixing, "data_collator": PairCollator(build_tokenizer())}, **options
        ).train()


def test_mappings_are_for_several(tmp_path):
    for given, message in (
        ({"compute_loss_func": {"a": MSELoss()}}, "compute_loss_func has the names"),
        ({"mixing": "even"}, "mixing='even' is for several data sets"),
        (
            {"data_collator": PairCollator(build_tokenizer(), columns={"a": ("a", "b")})},
            "this is one: give its columns",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            build(tmp_path, pairs(), trainer_options={"data_collator": PairCollator(build_tokenizer()), **given})


def test_a_loss_that_is_not_finite_names_the_data_set(tmp_path):
    losses = {"graded": InfiniteLoss(), "ranked": None, "found": None}
    trainer = build(tmp_path, trainer_options={"compute_loss_func": losses}, train_sampling_strategy="sequential")
    with pytest.raises(NotFiniteError, match=r"held the rows [\d, ]+ of 'graded'"):
        trainer.train()


def test_lists_and_search_for_a_model(tmp_path):
    """Rows from lists, and a model that is made anew."""
    rows = {"pairs": [(text, text, 1.0) for text in SENTENCES], "ranked": lists(4)}
    trainer = CrossEncoderTrainer(
        args=arguments(tmp_path),
        model_init=lambda: build_model(seed=2),
        train_dataset=rows,
        processing_class=build_tokenizer(),
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert Dataset.from_list(trainer.state.log_history[:3])  # plain numbers
