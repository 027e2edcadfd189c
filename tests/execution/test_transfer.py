"""No step of a training and no batch of a scoring waits for the device, which `waiting` finds out without one."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import SENTENCES, build_model, build_tokenizer
from execution.test_padding_free import FAMILIES, build, make_batch
from torch import Tensor
from transformers import TrainingArguments
from waiting import META, waits

from cross_trainer import BinaryCrossEntropyLoss, CrossEncoder, CrossEncoderTrainer, CrossEntropyLoss, ListNetLoss
from cross_trainer.execution import padding_free
from cross_trainer.execution.padding_free import DECODERS, enable_padding_free, unpad_indices
from cross_trainer.execution.token_budget import budgeted_step
from cross_trainer.execution.transfer import _remember, on_cpu, read_once, send, to_device

LISTS = torch.tensor([[1.0, 0.0, -100.0], [0.0, 1.0, 1.0], [0.0, -100.0, -100.0]])


@pytest.fixture
def flat(monkeypatch) -> None:
    """Every batch runs flat, as those in half precision do on a GPU."""
    monkeypatch.setattr(padding_free, "LEAST_PADDING", 0.0)


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_a_copy_of_a_changed_tensor_knows_nothing_of_its_source() -> None:
    moved = _remember(torch.tensor([3, 1, 2]), torch.tensor([3, 1, 2]))
    moved.add_(1)
    assert on_cpu(copy.deepcopy(moved)).tolist() == [4, 2, 3]


def test_a_tensor_knows_what_it_is_a_copy_of() -> None:
    source = torch.tensor([3, 1, 2])
    moved = to_device({"a": source, "b": "text"}, META)
    assert (moved["a"].device, moved["b"]) == (META, "text")
    assert on_cpu(moved["a"]) is source
    assert on_cpu(moved["a"].to(META)) is source
    assert send(source, source.device) is source
    assert on_cpu(source) is source


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("which", ["source", "copy"])
def test_what_was_written_to_since_is_read_back(which: str, inference: bool) -> None:
    source = torch.tensor([3, 1, 2])
    with torch.inference_mode(inference):
        moved = send(source, META)
        assert on_cpu(moved) is source
    if inference and which == "copy":
        return  # nothing counts what is written to it
    (source if which == "source" else moved).add_(1)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        on_cpu(moved)


def test_a_tensor_is_read_once_for_all_its_uses() -> None:
    with waits() as found:
        seen = read_once(torch.ones(2, 3, device=META))
        assert on_cpu(seen).shape == on_cpu(seen).shape == (2, 3)
    assert found == ["read in cross_trainer.execution.transfer.on_cpu"]


def test_places_of_tokens_are_found_where_the_mask_is_known() -> None:
    mask = make_batch()["attention_mask"]
    with waits() as found:
        places = unpad_indices(send(mask, META))
    assert torch.equal(on_cpu(places), unpad_indices(mask))
    assert not found


# --- the watch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "what"),
    [
        (lambda x: x.sum().item(), "read"),
        (lambda x: bool((x > 0).any()), "read"),
        (lambda x: x.tolist(), "read"),
        (lambda x: x.cpu(), "read"),
        (lambda x: torch.zeros(3).to(x), "copied up"),
        (lambda x: x.copy_(torch.zeros(3)), "copied up"),
        (lambda x: torch.tensor([1, 2], device=x.device), "copied up"),
        (lambda x: x.new_tensor([1, 2]), "copied up"),
        (lambda x: x[torch.tensor([1, 2])], "copied up"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_waits_are_found(wait, what: str, inference: bool) -> None:
    with torch.inference_mode(inference), waits() as found:
        wait(torch.ones(3, device=META))
    assert set(found) == {f"{what} in {__name__}.<lambda>"}


def test_what_waits_for_nothing_is_not_found() -> None:
    with waits() as found:
        moved = torch.ones(3, device=META)
        moved[send(torch.tensor([1, 2]), META)].add(1).to(torch.bfloat16).add_(2)
        torch.zeros(3, device=META).copy_(moved)
    assert not found


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize("kernel", ["varlen", "repad"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_waits(family: str, kernel: str) -> None:
    side = "left" if FAMILIES[family][0] in DECODERS else "right"
    model, batch = build(family, num_labels=1).to(META).train(), to_device(make_batch(side=side), META)
    with enable_padding_free(model, kernel=kernel), waits() as found:
        budgeted_step(model, batch, send(torch.ones(6), META), BinaryCrossEntropyLoss(pos_weight=2.0), max_tokens=25)
        budgeted_step(model, batch, send(LISTS, META), ListNetLoss(), max_tokens=25, num_items=3)
    assert found == []
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "pooler" not in name)


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize(
    ("loss", "labels", "width"),
    [
        (BinaryCrossEntropyLoss(), LISTS, 1),
        (BinaryCrossEntropyLoss((1.0, 2.0)), torch.ones(6, 2), 2),
        (CrossEntropyLoss((1.0, 2.0), 0.1), torch.ones(6), 2),
    ],
)
@pytest.mark.parametrize("budget", [25, 100])
def test_no_loss_waits(loss, labels: Tensor, width: int, budget: int) -> None:
    model, batch = build("bert", num_labels=width).to(META), to_device(make_batch(), META)
    with enable_padding_free(model), waits() as found:
        budgeted_step(model, batch, send(labels, META), loss, max_tokens=budget)
    assert found == []


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize("budget", [25, 100])
def test_a_mask_of_other_origin_is_read_once_a_step(monkeypatch, budget: int) -> None:
    model, batch, reads = build("bert", num_labels=1).to(META), make_batch(), []
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: reads.append(tensor.shape) or batch["attention_mask"])
    moved = {name: value.to(META) for name, value in batch.items()}
    with enable_padding_free(model), waits() as found:
        budgeted_step(model, moved, torch.ones(6, device=META), BinaryCrossEntropyLoss(), max_tokens=budget)
    assert (reads, found) == ([(6, 14)], [])


UPDATES = 3
ALLOWED = {
    # The weights shall be as they were before a step whose loss or gradient isn't finite: once an update.
    "read in cross_trainer.training.trainer._read": UPDATES,
    # Once a training: the sum of losses begins and ends.
    "copied up in transformers.trainer._inner_training_loop": 1,
    "read in transformers.trainer._finalize_training": 1,
}


@pytest.fixture
def on_meta(monkeypatch) -> None:
    """The Trainer takes the meta device for its own."""
    monkeypatch.setattr(TrainingArguments, "device", META)
    PartialState(cpu=True)
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "device", META)


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize("max_tokens", [None, 40])
@pytest.mark.parametrize("stop_on_nan", [True, False])
@pytest.mark.parametrize("lists", [False, True], ids=["pairs", "lists"])
def test_a_training_waits_once_an_update(request, tmp_path: Path, lists: bool, stop_on_nan: bool, max_tokens) -> None:
    rows = [{"a": first, "b": SENTENCES[-n], "label": n % 2} for n, first in enumerate(SENTENCES)]
    if lists:
        texts = SENTENCES + SENTENCES
        rows = [{"query": texts[n], "documents": texts[n : n + 2 + n % 2], "labels": [1, 0, 0][: 2 + n % 2]}
                for n in range(12)]  # fmt: skip
    settings = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 100}
    settings |= {"optim": "adamw_torch", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    args = TrainingArguments(tmp_path, use_cpu=True, max_steps=UPDATES, **settings)
    trainer = CrossEncoderTrainer(
        model := build_model(dropout=0.1),
        args,
        train_dataset=rows,
        processing_class=build_tokenizer(),
        max_tokens=max_tokens,
        stop_on_nan=stop_on_nan,
    )
    model.to(META)
    request.getfixturevalue("on_meta")
    with waits() as found:
        trainer.train()
    never = () if stop_on_nan else {"read in cross_trainer.training.trainer._read"}
    of_the_filter = {} if stop_on_nan else {"read in transformers.trainer._run_epoch": 2 * 2 * UPDATES}
    assert Counter(found) == {name: count for name, count in ALLOWED.items() if name not in never} | of_the_filter


# --- scoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "modernbert-cls", "qwen3"])
def test_scoring_waits_once_a_window(monkeypatch, tmp_path: Path, family: str) -> None:
    build(family, num_labels=1, vocab_size=200).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    encoder = CrossEncoder(tmp_path, device="cpu", max_tokens=200)
    encoder.model.to(META)
    if family != "bert":  # whose padded batches save most of a layer
        monkeypatch.setattr(padding_free, "LEAST_PADDING", 0.0)
    pairs = [(first, second) for first in SENTENCES for second in SENTENCES]
    with waits() as found:
        encoder.predict(pairs)
    assert found.count("read in cross_trainer.scoring.engine.run") == 1
    rest = {"read in transformers.masking_utils._ignore_bidirectional_mask_sdpa"}  # is there padding? once a batch
    assert set(found) - {"read in cross_trainer.scoring.engine.run"} <= (rest if family == "bert" else set())
