"""The Hub, played by a server on this machine: models go up and come back, and are trained by their names."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCES, build_model, build_tokenizer
from hub_server import COMMIT, serve

from cross_trainer import CrossEncoder

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
