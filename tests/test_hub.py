"""The Hub, played by a server on this machine: models go up and come back, and are trained by their names."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCES, build_model, build_tokenizer
from hub_server import COMMIT, serve
from huggingface_hub import ModelCard
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import TrainingArguments

from cross_trainer import CrossEncoder, CrossEncoderTrainer

RECIPES = Path(__file__).parent.parent / "recipes"
PAIRS = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], SENTENCES[3])]
UPLOAD = """
import json, sys
from cross_trainer import CrossEncoder
from cross_trainer.commands.score import fingerprint
encoder = CrossEncoder(sys.argv[1], device="cpu")
options = {"token": "hf_secret", "revision": "main", "commit_message": "First try"}
address = encoder.push_to_hub("somebody/pairs", private=True, **options)
back = CrossEncoder("somebody/pairs", device="cpu")
scores = back.predict(json.loads(sys.argv[2])).tolist()
model = fingerprint(back, "somebody/pairs", {"revision": "main"})["model"]
print(json.dumps({"address": address, "scores": scores, "length": back.max_length, "model": model}))
"""

PROPOSE = """
import sys
from cross_trainer import CrossEncoder
encoder = CrossEncoder(sys.argv[1], device="cpu")
encoder.push_to_hub("somebody/pairs", "hf_secret", revision="try")
print(encoder.push_to_hub("somebody/pairs", "hf_secret", create_pr=True, commit_description="Better ones"))
"""


@pytest.fixture
def hub():
    with serve() as running:
        yield running


def run(hub, folder, *command):
    """Run Python with this Hub as the only one that it knows."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def put_model(hub, folder, name):
    """A pretrained model without a head on the Hub."""
    build_model().bert.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    hub.repositories["models", name] = {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_goes_up_in_one_commit_and_comes_back(hub, tmp_path):
    model = build_model(sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    encoder = CrossEncoder(model, tokenizer=build_tokenizer(), max_length=24)
    encoder.save_pretrained(tmp_path / "model")
    hub.repositories["models", "somebody/pairs"] = {"README.md": b"---\nlicense: mit\n---\nWritten on the Hub.\n"}
    done = run(hub, tmp_path / "cache", "-c", UPLOAD, str(tmp_path / "model"), json.dumps(PAIRS))
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(printed["scores"], encoder.predict(PAIRS), atol=1e-6)
    assert printed["length"] == 24
    assert printed["model"] == f"somebody/pairs@{COMMIT}"
    assert printed["address"] == f"{hub.url}/somebody/pairs/commit/{COMMIT}"
    (created,) = hub.created
    assert (created["id"], created["token"]) == ("somebody/pairs", "Bearer hf_secret")
    assert created.get("private") is True or created.get("visibility") == "private"
    (commit,) = hub.commits
    assert (commit["summary"], commit["revision"]) == ("First try", "main")
    assert {"config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"} <= set(
        hub.repositories["models", "somebody/pairs"]
    )
    card = ModelCard(hub.repositories["models", "somebody/pairs"]["README.md"].decode())
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "text-ranking")
    assert "Written on the Hub." in card.text
    assert 'CrossEncoder("somebody/pairs")' in card.text


CASES = [
    ["end", "end", "hf_secret"],
    ["every_save", "every_save", "hf_secret"],
    ["checkpoint", "checkpoint", "hf_secret"],
    ["all_checkpoints", "all_checkpoints", "hf_secret"],
    ["refused", "every_save", "hf_secret"],
    ["read", "every_save", "hf_reader"],
    ["offline", "every_save", "hf_stranger"],
]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """What trainings that push said, and the Hub that they pushed to."""
    folder = tmp_path_factory.mktemp("pushed")
    with serve() as running:
        running.readers.add("hf_reader")
        running.strangers.add("hf_stranger")
        running.repositories["models", "somebody/read"] = {}
        running.repositories["models", "somebody/every_save"] = {"README.md": b"Written on the Hub.\n"}
        running.drops, running.refusals["somebody/refused"] = 1, 1
        done = run(running, folder, str(Path(__file__).parent / "hub_trainings.py"), str(folder), json.dumps(CASES))
        assert done.returncode == 0, done.stderr[-3000:]
        yield running, json.loads(done.stdout.splitlines()[-1]), folder


def commits(hub, name):
    return [commit for commit in hub.commits if commit["name"] == f"somebody/{name}"]


def titles(hub, name):
    return [commit["summary"] for commit in commits(hub, name)]


DURING = ["Training in progress, step 1", "Training in progress, step 2"]
AFTERWARDS = ["Model save", "End of training"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("end", AFTERWARDS),
        ("every_save", DURING + AFTERWARDS),
        ("checkpoint", [title + more for title in DURING for more in ("", ", checkpoint")] + AFTERWARDS),
        ("all_checkpoints", [title + more for title in DURING for more in ("", ", checkpoint")] + AFTERWARDS),
    ],
)
def test_every_strategy_uploads_in_its_way(pushed, name, expected):
    hub, said, _ = pushed
    assert titles(hub, name) == expected
    assert said[name] == {"steps": 2, "said": [], "error": None}


def test_checkpoints_go_into_folders(pushed):
    hub, _, folder = pushed
    names = {name: set(hub.repositories["models", f"somebody/{name}"]) for name, *_ in CASES[:4]}
    assert {name: {path.split("/")[0] for path in paths if "checkpoint" in path} for name, paths in names.items()} == {
        "end": set(),
        "every_save": set(),
        "checkpoint": {"last-checkpoint"},
        "all_checkpoints": {"checkpoint-1", "checkpoint-2"},
    }
    last = hub.repositories["models", "somebody/checkpoint"]["last-checkpoint/trainer_state.json"]
    assert last == (folder / "checkpoint" / "checkpoint-2" / "trainer_state.json").read_bytes()


def test_a_model_is_whole_at_every_upload(pushed):
    hub, _, _ = pushed
    whole = {"README.md", "config.json", "model.safetensors", "modules.json", "sentence_bert_config.json"}
    first = commits(hub, "every_save")[0]["files"]
    assert whole | {"config_sentence_transformers.json", "tokenizer.json"} <= set(first)
    assert json.loads(first["tokenizer_config.json"])["model_max_length"] == 64
    assert "## Training data" in first["README.md"].decode()


def test_the_card_goes_up_and_what_was_written_on_the_hub_stays(pushed):
    hub, _, folder = pushed
    text = hub.repositories["models", "somebody/every_save"]["README.md"].decode()
    assert text == (folder / "every_save" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.language == "en"
    assert "Written on the Hub." in text
    assert 'CrossEncoder("somebody/every_save")' in text
    assert "figures/learning_curve.png" not in hub.repositories["models", "somebody/every_save"]  # two steps, one loss


def test_an_upload_that_was_broken_off_is_taken_up(pushed):
    hub, said, _ = pushed
    (broken,) = hub.dropped
    assert {digest: hub.puts.count(digest) for digest in hub.puts if hub.puts.count(digest) != 1} == {broken: 2}
    assert broken in hub.objects
    assert titles(hub, "refused") == [*DURING[1:], *AFTERWARDS]
    (warning,) = said["refused"]["said"]
    assert warning.startswith("Not uploaded to the Hub: checkpoint-1 and its model.")
    assert "Not today" in warning
    assert (said["refused"]["steps"], said["refused"]["error"]) == (2, None)


def test_training_goes_on_with_a_token_that_can_only_read(pushed):
    hub, said, folder = pushed
    assert (said["read"]["steps"], hub.repositories["models", "somebody/read"]) == (2, {})
    assert [message.split(". The reason")[0] for message in said["read"]["said"]] == [
        "Not uploaded to the Hub: checkpoint-1 and its model",
        "Not uploaded to the Hub: checkpoint-2 and its model",
        "Not uploaded to the Hub: the saved model",
    ]
    assert "403" in said["read"]["said"][0]
    assert "403" in said["read"]["error"]
    assert (folder / "read" / "model.safetensors").exists()


def test_training_goes_on_without_a_connection(pushed):
    _, said, folder = pushed
    assert said["offline"]["steps"] == 2
    told = "Not uploaded to the Hub: anything, as the repository can't be made or read. The reason: RemoteProtocolError"
    assert len(said["offline"]["said"]) == 5  # at the start, at both checkpoints, the save and the push
    assert all(message.startswith(told) for message in said["offline"]["said"])
    assert said["offline"]["error"] is not None
    assert "## Usage" in (folder / "offline" / "README.md").read_text(encoding="utf-8")


def test_offline_mode_ends_no_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    args = TrainingArguments(
        str(tmp_path / "pairs"), report_to="none", use_cpu=True, push_to_hub=True, max_steps=1, save_strategy="no"
    )
    data = [(*pair, 1) for pair in PAIRS] + [(*pair[::-1], 0) for pair in PAIRS]
    trainer = CrossEncoderTrainer(build_model(), args, train_dataset=data, processing_class=build_tokenizer())
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "pairs" / "model.safetensors").exists()
    assert "OfflineModeIsEnabled" in caplog.text
    with pytest.raises(OfflineModeIsEnabled):
        trainer.push_to_hub()


def test_an_upload_in_the_background_tells_that_it_failed(tmp_path, monkeypatch, caplog):
    args = TrainingArguments(str(tmp_path / "pairs"), report_to="none", use_cpu=True)
    data = [(*pair, 1) for pair in PAIRS]
    trainer = CrossEncoderTrainer(build_model(), args, train_dataset=data, processing_class=build_tokenizer())
    trainer.hub_model_id, upload = "somebody/pairs", Future()
    monkeypatch.setattr("transformers.Trainer.push_to_hub", lambda *_, **__: upload)
    assert trainer.push_to_hub(blocking=False) is upload
    upload.set_exception(ConnectionError("gone"))
    assert "Not uploaded to the Hub: the saved model. The reason: ConnectionError: gone." in caplog.text


def test_a_model_goes_to_a_new_branch_or_a_pull_request(hub, tmp_path):
    CrossEncoder(build_model(), tokenizer=build_tokenizer()).save_pretrained(tmp_path / "model")
    done = run(hub, tmp_path / "cache", "-c", PROPOSE, str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{hub.url}/somebody/pairs/discussions/1"
    assert hub.branches == {"main", "try"}
    assert [(commit["summary"], commit["description"]) for commit in hub.commits] == [
        ("Add a cross-encoder", ""),
        ("Add a cross-encoder", "Better ones"),
    ]


def test_a_recipe_trains_a_model_and_a_data_set_of_the_hub_and_pushes(hub, tmp_path):
    put_model(hub, tmp_path / "model", "somebody/small")
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["question1", "question2", "label"])
    rows.writerows(
        (first, second, index % 2) for index, (first, second) in enumerate(zip(SENTENCES, SENTENCES[::-1], strict=True))
    )
    data = text.getvalue().encode()
    hub.repositories["datasets", "somebody/questions"] = {"train.csv": data, "validation.csv": data}
    done = run(
        hub,
        tmp_path / "cache",
        str(RECIPES / "quora.py"),
        "--model",
        "somebody/small",
        "--dataset",
        "somebody/questions",
        "--use_cpu",
        "--dataset_config",
        "default",
        "--output_dir",
        str(tmp_path / "output"),
        "--num_train_epochs",
        "1",
        "--report_to",
        "none",
        "--push_to_hub",
        "--hub_model_id",
        "somebody/trained",
        "--hub_token",
        "hf_secret",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "average_precision" in done.stdout
    uploaded = hub.repositories["models", "somebody/trained"]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        assert uploaded[name] == (tmp_path / "output" / name).read_bytes()
    assert not [name for name in uploaded if "checkpoint" in name]


def test_a_name_that_the_hub_doesnt_know(hub, tmp_path):
    put_model(hub, tmp_path / "model", "somebody/small")
    done = run(
        hub,
        tmp_path / "cache",
        str(RECIPES / "quora.py"),
        "--model",
        "somebody/small",
        "--dataset",
        "nobody/nothing",
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
    )
    assert done.returncode == 2
    assert [
        line
        for line in done.stderr.splitlines()
        if line.startswith("error: 'nobody/nothing' is neither a file nor a folder")
    ]


ADAPTERS = """
import json, sys
import peft
from transformers import AutoModelForSequenceClassification, TrainingArguments
from cross_trainer import CrossEncoder, CrossEncoderTrainer
pairs, folder = json.loads(sys.argv[1]), sys.argv[2]
model = AutoModelForSequenceClassification.from_pretrained("somebody/base", num_labels=1)
options = {"target_modules": ["query"], "init_lora_weights": False}
settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, revision="main", **options)
adapted = peft.get_peft_model(model, settings)
options = {"push_to_hub": True, "hub_model_id": "somebody/whole", "hub_strategy": "end", "report_to": "none"}
args = TrainingArguments(folder, use_cpu=True, **options)
rows = [(*pair, 1.0) for pair in pairs]
trainer = CrossEncoderTrainer(adapted, args, train_dataset=rows, merge_adapters=True)
trainer.push_to_hub()
encoder = CrossEncoder(adapted, tokenizer=trainer.data_collator.tokenizer, device="cpu")
encoder.push_to_hub("somebody/adapter")
encoder.push_to_hub("somebody/merged", merge_adapters=True)
names = ["adapter", "merged", "whole"]
read = [CrossEncoder(f"somebody/{name}", device="cpu") for name in names]
again = CrossEncoderTrainer("somebody/adapter", TrainingArguments(folder, use_cpu=True), train_dataset=rows)
scores = [each.predict(pairs, activation="logits").tolist() for each in [encoder, *read]]
print(json.dumps([*scores, again.predict(rows).predictions.ravel().tolist()]))
"""


def test_adapters_go_up_in_both_forms_and_come_back(hub, tmp_path):
    put_model(hub, tmp_path / "base", "somebody/base")
    stale = {"adapter": ["config.json", "model.safetensors"], "merged": ["adapter_config.json"]}
    stale["whole"] = ["adapter_config.json", "adapter_model.safetensors"]
    for name, files in stale.items():
        hub.repositories["models", f"somebody/{name}"] = dict.fromkeys([*files, "notes.txt"], b"{}")
    done = run(hub, tmp_path / "cache", "-c", ADAPTERS, json.dumps(PAIRS), str(tmp_path / "output"))
    assert done.returncode == 0, done.stderr[-3000:]
    expected, *found = json.loads(done.stdout.splitlines()[-1])
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    for name, files in stale.items():
        there = hub.repositories["models", f"somebody/{name}"]
        assert not set(files) & set(there)
        assert "notes.txt" in there
    settings = json.loads(hub.repositories["models", "somebody/adapter"]["adapter_config.json"])
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("somebody/base", "main")
