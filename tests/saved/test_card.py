"""The model card of a real run: its facts, its metadata, its code, and what stays of it when somebody edits it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SENTENCES, build_model, build_tokenizer
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import ModelCard, metadata_load
from transformers import BertConfig, DataCollatorWithPadding, TrainingArguments

from cross_trainer import (
    ConfigurationError,
    CrossEncoder,
    CrossEncoderTrainer,
    MissingDependencyError,
    MSELoss,
    binary_metrics,
)
from cross_trainer.saved.card import CardFacts, write_card
from cross_trainer.saved.readme import Readme
from cross_trainer.saved.usage import NEUTRAL_PAIRS

SECRET = "xylophones and zeppelins"


def rows(count=24, **more):
    """Pairs of sentences with labels 0 and 1."""
    texts = [SENTENCES[index % len(SENTENCES)] for index in range(count)]
    return Dataset.from_dict(
        {"question": texts, "answer": texts[::-1], "label": [index % 2 for index in range(count)], **more}
    )


def trained(folder, data=None, held_out=None, model=None, epochs=1.0, arguments=(), **options):
    """A trainer of a tiny model that has run."""
    settings = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(str(folder), num_train_epochs=epochs, **{**settings, **dict(arguments)})
    data = rows() if data is None else data
    trainer = CrossEncoderTrainer(
        build_model() if model is None else model,
        args,
        train_dataset=data,
        eval_dataset=data if held_out is None else held_out,
        processing_class=build_tokenizer(),
        **{"card_figures": False, **options},
    )
    trainer.train()
    return trainer


def card(folder):
    return (Path(folder) / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved model of a whole run, with the best checkpoint loaded and two evaluations."""
    folder = tmp_path_factory.mktemp("home") / "somewhere" / "duplicates"
    data = rows(40)
    arguments = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "roc_auc",
        "learning_rate": 1e-3,
    }
    trainer = trained(folder, data, data.select(range(20)), arguments=arguments, epochs=2, card_figures=True)
    test = data.select(range(20, 40))
    test.info.dataset_name, test._split = "questions.csv", None
    trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_model()
    return trainer, folder


def test_the_metadata_are_what_the_hub_reads(run):
    trainer, folder = run
    data = metadata_load(folder / "README.md")
    assert data["library_name"] == "sentence-transformers"
    assert data["pipeline_tag"] == "text-ranking"
    assert {"cross-encoder", "cross_trainer", "loss:BinaryCrossEntropyLoss"} <= set(data["tags"])
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.model_name == "duplicates"
    results = {(result.dataset_name, result.metric_type): result for result in loaded.data.eval_results}
    best = next(
        entry
        for entry in trainer.state.log_history
        if entry["step"] == trainer.state.best_global_step and "eval_f1" in entry
    )
    assert results["eval", "roc_auc"].metric_value == best["eval_roc_auc"]
    assert ("questions.csv, test", "f1") in results
    low, high = results["eval", "f1"].metric_args["interval"]
    assert low <= results["eval", "f1"].metric_value <= high
    again = ModelCard(str(loaded)).data
    assert again.eval_results == loaded.data.eval_results
    assert again.to_dict() == data


def test_its_facts_are_those_of_the_run(run):
    trainer, folder = run
    text = card(folder)
    assert "| 0 | 20 | 50.0 % |" in text
    assert "`question` | first text" in text
    assert "the probability that the label of the pair is 1" in text
    assert "BinaryCrossEntropyLoss(pos_weight=None)" in text
    assert f"step {trainer.state.best_global_step}, with roc_auc {trainer.state.best_metric:.4f}" in text
    assert "| `learning_rate` | `0.001` |" in text
    assert "Seed: 42" in text
    lengths = [len(ids) for ids in build_tokenizer()(rows(40)["question"][:], rows(40)["answer"][:])["input_ids"]]
    assert f"| {min(lengths)} | {int(np.percentile(lengths, 25))} | {int(np.median(lengths))} |" in text
    threshold = re.search(r"Scores from \*\*([\d.]+)\*\* on are positive: F1 ([\d.]+)", text)
    kept = next(each for each in trainer._record.evaluations if each.name == "eval")
    assert float(threshold[1]) == pytest.approx(kept.metrics["f1_threshold"], rel=1e-3)
    value = binary_metrics(threshold=kept.metrics["f1_threshold"])(
        type("E", (), {"predictions": kept.logits, "label_ids": kept.labels})
    )
    assert float(threshold[2]) == pytest.approx(value["f1"], abs=1e-3)


def test_it_tells_no_place_of_the_machine(run, tmp_path_factory):
    _, folder = run
    text = card(folder)
    assert str(folder.parent) not in text
    assert "somewhere" not in text
    assert str(tmp_path_factory.getbasetemp()) not in text


def test_its_code_prints_what_stands_below_it(run, monkeypatch, capsys):
    _, folder = run
    monkeypatch.chdir(folder.parent)
    usage = Readme.read(folder / "README.md").sections["usage"]
    found = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", usage, re.DOTALL)
    assert len(found) == len(blocks(usage, "python")) == 3
    for code, printed in found:
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), {})
        numbers = [
            [float(each) for each in re.findall(r"\d+\.\d+", text)] for text in (capsys.readouterr().out, printed)
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)
        assert numbers[0]


def test_its_commands_send_json(run):
    _, folder = run
    commands = "\n".join(blocks(card(folder), "bash"))
    bodies = [json.loads(body) for body in re.findall(r"-d '(.*)'$", commands, re.MULTILINE)]
    assert [sorted(body) for body in bodies] == [["query", "texts"], ["model", "text_1", "text_2"]]
    assert "--model-id duplicates" in commands


def test_its_pictures_are_there(run):
    _, folder = run
    shown = set(re.findall(r"\]\((figures/.*?)\)", card(folder)))
    assert shown == {f"figures/{path.name}" for path in (folder / "figures").iterdir()}
    names = {"confusion", "learning_curve", "length_error", "precision_recall", "reliability", "score_distribution"}
    assert {Path(path).stem for path in shown} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "figures").iterdir())


def test_a_checkpoint_has_a_card_without_what_takes_time(run):
    _, folder = run
    checkpoint = next(folder.glob("checkpoint-*"))
    text = card(checkpoint)
    assert "## Training data" in text
    assert not (checkpoint / "figures").exists()
    assert "```text" not in text
    assert "interval" not in text


def test_what_was_edited_survives(run, tmp_path):
    trainer, folder = run
    copy = tmp_path / "duplicates"
    shutil.copytree(folder, copy)
    text = card(copy)
    text = text.replace("## What a score means", "## How to read a score").replace(
        "library_name: sentence-transformers\n", "library_name: mine\nlicense: mit\n"
    )
    text = text.replace("pipeline_tag: text-ranking\n", "").replace(
        "<!-- cross_trainer: begin data", "My own section.\n\n<!-- cross_trainer: begin data"
    )
    text = text.replace("Seed: 42", "Seed: 42", 1)
    (copy / "README.md").write_text(text, encoding="utf-8")
    for _ in range(2):
        trainer.save_model(str(copy))
        data, again = metadata_load(copy / "README.md"), card(copy)
        assert data["library_name"] == "mine"
        assert data["license"] == "mit"
        assert "pipeline_tag" not in data
        assert "## How to read a score" in again
        assert "## What a score means" not in again
        assert again.index("## Evaluation") < again.index("My own section.") < again.index("## Training data")
        assert again.count("begin data") == 1


def test_what_wasnt_edited_is_written_anew(run, tmp_path):
    trainer, folder = run
    stale = tmp_path / "duplicates"
    stale.mkdir()
    write_card(stale, CardFacts("old", trainer.model.config, base_model="old/base", base_on_hub=True))
    assert "old/base" in card(stale)
    trainer.save_model(str(stale))
    assert card(stale) == card(folder)


def test_a_readme_of_somebody_else_stays_on_top(tmp_path):
    trainer = trained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# By hand\n\nNo metadata.\n", encoding="utf-8")
    trainer.save_model()
    trainer.save_model()
    text = card(tmp_path / "model")
    assert text.index("# By hand") < text.index("# model\n")
    assert text.count("No metadata.") == text.count("## Usage") == 1


@pytest.mark.parametrize("count", [0, 1])
def test_texts_of_the_data_stand_in_a_card_as_far_as_allowed(tmp_path, count):
    data = [(f"{SECRET} {index}", "b " * 200 + "zebra", index % 2) for index in range(8)]
    trainer = trained(tmp_path / "model", data, card_examples=count)
    trainer.save_model()
    text = card(tmp_path / "model")
    assert (SECRET in text) is bool(count)
    assert f"{SECRET} 0" in text if count else "How do I reset my password?" in text
    assert f"{SECRET} 1" not in text
    assert "zebra" not in text


def test_texts_cant_break_out_of_their_table(tmp_path):
    bad = "a | b\n\n<!-- cross_trainer: end data --> `x` <script>"
    trainer = trained(tmp_path / "model", [(bad, "b", 0), ("a", bad, 1)] * 2)
    trainer.save_model()
    once = card(tmp_path / "model")
    trainer.save_model()
    assert card(tmp_path / "model") == once
    assert Readme.read(tmp_path / "model" / "README.md").edited == set()
    assert "<script>" not in re.sub(r"```.*?```", "", once, flags=re.DOTALL)


def test_classes_have_their_names(tmp_path):
    names = ["contradiction", "entailment", "neutral"]
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=names)})
    data = Dataset.from_dict(
        {"premise": SENTENCES, "hypothesis": SENTENCES[::-1], "label": [0, 1, 2] * 4}, features=features
    )
    trainer = trained(tmp_path / "nli", data, model=build_model(3), card_figures=True)
    trainer.evaluate()
    trainer.save_model()
    text = card(tmp_path / "nli")
    assert metadata_load(tmp_path / "nli" / "README.md")["pipeline_tag"] == "text-classification"
    assert "3 probabilities, one for each class" in text
    assert "| entailment | 4 | 33.3 % |" in text
    assert "f1 entailment" in text
    assert "vllm" not in text
    assert (tmp_path / "nli" / "figures" / "confusion.png").exists()


def test_rankings_show_the_quality_of_queries(tmp_path):
    data = [{"query": text, "documents": SENTENCES[:4], "labels": [2, 0, 0, 1]} for text in SENTENCES]
    trainer = trained(tmp_path / "rank", data, card_figures=True)
    trainer.evaluate()
    trainer.save_model()
    text = card(tmp_path / "rank")
    assert "the more relevant the second text is to the first" in text
    assert "| 0 | 24 | 50.0 % |" in text
    assert "figures/quality_per_query.png" in text
    assert '"raw_scores": true' in text


def test_numbers_have_their_range(tmp_path):
    data = [(text, text, index / 2) for index, text in enumerate(SENTENCES)]
    trainer = trained(tmp_path / "raw", data, compute_loss_func=MSELoss(activation="identity"))
    trainer.evaluate()
    trainer.save_model()
    text = card(tmp_path / "raw")
    assert "on the scale of the labels. The labels of training lie between 0 and 5.5" in text
    assert "MSELoss(activation='identity')" in text


def test_data_of_the_hub_are_named(tmp_path):
    data = rows()
    url = "hf://datasets/somebody/questions@0123abc/data/train.csv"
    data.info.download_checksums, data.info.config_name = {url: {}}, "pairs"
    trainer = trained(tmp_path / "model", data)
    trainer.evaluate()
    trainer.save_model()
    keys = metadata_load(tmp_path / "model" / "README.md")
    assert keys["datasets"] == ["somebody/questions"]
    assert keys["model-index"][0]["results"][0]["dataset"]["config"] == "pairs"
    assert "https://huggingface.co/datasets/somebody/questions" in card(tmp_path / "model")


def test_arguments_of_create_model_card_count_and_last(tmp_path):
    trainer = trained(tmp_path / "model")
    trainer.evaluate()
    trainer.create_model_card(
        language="en",
        license="mit",
        tags="mine",
        model_name="Pairs",
        finetuned_from="some/base",
        dataset="Questions",
        dataset_args="pairs",
        dataset_tags="some/questions",
    )
    keys = metadata_load(tmp_path / "model" / "README.md")
    assert (keys["language"], keys["license"], keys["base_model"]) == ("en", "mit", "some/base")
    assert {"mine", "cross-encoder"} <= set(keys["tags"])
    assert keys["datasets"] == "some/questions"
    result = keys["model-index"][0]["results"][0]
    assert (keys["model-index"][0]["name"], result["dataset"]["config"]) == ("Pairs", "pairs")
    assert result["dataset"]["name"].startswith("Questions")
    trainer.save_model()
    keys = metadata_load(tmp_path / "model" / "README.md")
    assert (keys["language"], keys["license"]) == ("en", "mit")
    assert "mine" in keys["tags"]


def test_a_model_without_evaluation_or_training(tmp_path):
    args = TrainingArguments(str(tmp_path / "model"), report_to="none", use_cpu=True)
    trainer = CrossEncoderTrainer(build_model(), args, train_dataset=rows(), processing_class=build_tokenizer())
    trainer.save_model()
    sections = Readme.read(tmp_path / "model" / "README.md").sections
    assert list(sections) == ["model", "scores", "usage", "data", "training"]
    assert "Duration" not in sections["training"]


def test_metrics_of_a_resumed_run_come_from_its_log(tmp_path):
    arguments = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    trained(tmp_path / "model", arguments=arguments)
    args = TrainingArguments(
        str(tmp_path / "model"), report_to="none", use_cpu=True, num_train_epochs=1, disable_tqdm=True
    )
    again = CrossEncoderTrainer(
        build_model(), args, train_dataset=rows(), eval_dataset=rows(), processing_class=build_tokenizer()
    )
    again.train(resume_from_checkpoint=True)
    again.save_model()
    assert "roc auc" in card(tmp_path / "model")


def test_what_goes_wrong_with_a_card_leaves_the_model(tmp_path, monkeypatch, caplog):
    trainer = trained(tmp_path / "model")
    monkeypatch.setattr("cross_trainer.training.facts.git_commit", lambda: 1 / 0)
    trainer.save_model()
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert "couldn't be written. The model is saved." in caplog.text


@pytest.mark.parametrize("collator", [None, DataCollatorWithPadding(build_tokenizer())])
def test_tokenised_rows_and_other_collators(tmp_path, collator):
    tokens = build_tokenizer()(SENTENCES, SENTENCES[::-1])
    data = Dataset.from_dict({**tokens, "label": [0, 1] * 6})
    trainer = trained(tmp_path / "tokens", data, data_collator=collator, card_figures=True)
    trainer.evaluate()
    trainer.save_model()
    sections = Readme.read(tmp_path / "tokens" / "README.md").sections
    assert list(sections) == ["model", "scores", "usage", "evaluation", "data", "training"]
    assert "12 rows." in sections["data"]
    assert "Examples" not in sections["data"]


def test_an_evaluation_before_another_training_is_forgotten(tmp_path):
    trainer = trained(tmp_path / "model")
    trainer.evaluate()
    trainer.train()
    trainer.save_model()
    assert "evaluation" not in Readme.read(tmp_path / "model" / "README.md").sections


def test_streams_are_told_as_such(tmp_path):
    trainer = trained(tmp_path / "model", rows().to_iterable_dataset(), arguments={"max_steps": 1})
    trainer.save_model()
    assert "`train`: a stream, whose first 24 rows were looked at." in card(tmp_path / "model")


@pytest.mark.parametrize("examples", [-1, 1.5, True])
def test_a_wrong_number_of_examples(tmp_path, examples):
    with pytest.raises(ConfigurationError, match="card_examples"):
        CrossEncoderTrainer(
            build_model(),
            TrainingArguments(str(tmp_path)),
            train_dataset=rows(),
            processing_class=build_tokenizer(),
            card_examples=examples,
        )


def test_figures_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    options = {"args": TrainingArguments(str(tmp_path)), "train_dataset": rows(), "processing_class": build_tokenizer()}
    with pytest.raises(MissingDependencyError, match=r"cross-trainer\[plots\]"):
        CrossEncoderTrainer(build_model(), card_figures=True, **options)
    assert not CrossEncoderTrainer(build_model(), **options)._record.figures


# -- CrossEncoder ------------------------------------------------------------------------------------------------------


def test_a_model_that_is_saved_again_keeps_its_card(run, tmp_path):
    _, folder = run
    CrossEncoder(str(folder), device="cpu").save_pretrained(tmp_path / "copy")
    before, after = (Readme.read(each / "README.md") for each in (folder, tmp_path / "copy"))
    assert {**before.sections, "usage": ""} == {**after.sections, "usage": ""}
    assert 'CrossEncoder("copy")' in after.sections["usage"]
    assert before.metadata == after.metadata
    assert {path.name for path in (folder / "figures").iterdir()} == {
        path.name for path in (tmp_path / "copy" / "figures").iterdir()
    }


def test_a_model_that_was_trained_since_loses_the_card_of_the_old_one(run, tmp_path):
    _, folder = run
    encoder = CrossEncoder(str(folder), device="cpu")
    trained(tmp_path / "more", model=encoder.model)
    encoder.save_pretrained(tmp_path / "copy")
    assert list(Readme.read(tmp_path / "copy" / "README.md").sections) == ["model", "scores", "usage"]


def test_fit_tells_how_it_trained_and_shows_no_texts(run, tmp_path):
    from torch.utils.data import DataLoader

    _, folder = run
    encoder = CrossEncoder(str(folder), device="cpu")
    loader = DataLoader([(f"{SECRET} {index}", "b", index % 2) for index in range(8)], batch_size=4)
    encoder.fit(loader, output_path=tmp_path / "fitted", show_progress_bar=False, evaluator=lambda *_, **__: 1.0)
    sections = Readme.read(tmp_path / "fitted" / "README.md").sections
    assert list(sections) == ["model", "scores", "usage", "data", "training"]
    assert "8 rows" in sections["data"]
    assert SECRET not in card(tmp_path / "fitted")


def test_an_authors_own_card_is_kept_as_it_is(tmp_path):
    encoder = CrossEncoder(build_model(), tokenizer=build_tokenizer())
    encoder.save_pretrained(tmp_path / "theirs")
    assert list(Readme.read(tmp_path / "theirs" / "README.md").sections) == ["model", "scores", "usage"]
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: mit\n---\n# Theirs\n", encoding="utf-8")
    CrossEncoder(str(tmp_path / "theirs"), device="cpu").save_pretrained(tmp_path / "copy")
    assert card(tmp_path / "copy") == card(tmp_path / "theirs")


def test_metadata_that_are_no_yaml_stay_as_text(tmp_path):
    (tmp_path / "README.md").write_text("---\na: [\n---\n# Broken\n", encoding="utf-8")
    write_card(tmp_path, CardFacts("pairs", BertConfig(num_labels=1)))
    text = card(tmp_path)
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == "text-ranking"
    assert "a: [" in text
    assert "# Broken" in text


def test_the_card_of_a_model_with_a_template_says_how_servers_put_pairs(tmp_path):
    template = "[CLS] query: {query} document: {document} [SEP]"
    CrossEncoder(build_model(), tokenizer=build_tokenizer(), template=template).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert template in card
    assert "### Servers" in card
    assert "text_pair" not in card
    assert "text-embeddings-router" not in card
    expected = CrossEncoder(tmp_path).predict(list(NEUTRAL_PAIRS)).round(4).tolist()
    shown = re.findall(r"```text\n(\[[-\d., ]+\])\n```", card)
    assert len(shown) == 2  # of this package, and of sentence-transformers
    assert all(np.allclose(json.loads(scores), expected, atol=2e-4) for scores in shown)
