"""A last layer of first tokens against the whole layer that it replaces; who else reads it gets all tokens."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from cross_trainer.execution import first_token
from cross_trainer.execution.attention import Layout, flat_attention
from cross_trainer.execution.first_token import FIRST_TOKEN_FAMILIES, reads_first_token
from cross_trainer.execution.padding_free import enable_padding_free, unpad_indices
from cross_trainer.execution.token_budget import budgeted_step
from cross_trainer.execution.view import skip_unread_tokens
from cross_trainer.training.losses import BinaryCrossEntropyLoss

LENGTHS = (9, 3, 14, 9, 5, 1)


def build(family: str = "bert", **overrides: object) -> PreTrainedModel:
    settings = {
        "vocab_size": 100,
        "hidden_size": 32,
        "embedding_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "initializer_range": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 1,
    }
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **{**settings, **overrides}))


def make_batch() -> dict[str, Tensor]:
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, 100, real.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~real, 1)
    return {"input_ids": ids, "attention_mask": real.long()}


def tokens_of_last_layer(model: PreTrainedModel, run: Callable[[], object]) -> int:
    """How many tokens the last layer's feed-forward part computes."""
    counts: list[int] = []
    layer = model.base_model.encoder.layer[-1]
    handle = layer.intermediate.register_forward_hook(lambda *given: counts.append(given[2].shape[:2].numel()))
    run()
    handle.remove()
    return counts[0]


def gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).logits.mul(torch.linspace(-1, 1, len(LENGTHS))[:, None]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        scale = torch.maximum(gradient.abs().max(), 1e-2 * largest)
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=rtol, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", FIRST_TOKEN_FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_layer(family: str, checkpointing: bool) -> None:
    model, batch = build(family).train(), make_batch()
    expected, wanted = model(**batch).logits, gradients(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable()
    with enable_padding_free(model):
        found = model(**batch).logits
        assert_same_gradients(gradients(model, batch), wanted)
        assert tokens_of_last_layer(model, lambda: model(**batch)) == len(LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["groups", "repad", "dropout"])
def test_attention_of_first_tokens_is_their_part_of_all(kernel: str) -> None:
    groups = ((1, 3), (2, 6), (1, 11))
    lengths = torch.tensor([3, 6, 6, 11])
    mask = torch.arange(11) < lengths[:, None]
    layout = Layout(unpad_indices(mask), mask, groups, "groups" if kernel == "dropout" else kernel)
    dropout = 1e-12 if kernel == "dropout" else 0.0  # drops nothing, but takes that path
    query, key, value = (torch.randn(1, 4, 26, 8).requires_grad_() for _ in range(3))
    whole = flat_attention(query, key, value, layout, dropout=dropout)[:, layout.starts]
    part = flat_attention(query[:, :, layout.starts], key, value, layout, dropout=dropout, first_only=True)
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)
    towards = torch.randn(part.shape)
    for found, wanted in zip(
        *(torch.autograd.grad(x, (query, key, value), towards) for x in (part, whole)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_with_dropout_is_that_of_the_same_mask() -> None:
    mask = torch.arange(6) < torch.tensor([3, 6, 6])[:, None]
    layout = Layout(unpad_indices(mask), mask, ((1, 3), (2, 6)))
    query = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(1, 2, 15, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def attend(*inputs: Tensor) -> Tensor:
        torch.manual_seed(5)
        return flat_attention(*inputs, layout, dropout=0.3, first_only=True)

    assert torch.autograd.gradcheck(attend, (query, *states), fast_mode=True)


def test_dropout_leaves_the_expectation() -> None:
    model, batch = (
        build(attention_probs_dropout_prob=0.2, hidden_dropout_prob=0.2, initializer_range=0.02),
        make_batch(),
    )
    whole, part = [], []
    model.train()
    with torch.no_grad(), enable_padding_free(model):
        for _ in range(300):
            part.append(model(**batch).logits)
            whole.append(model(**batch, output_hidden_states=True).logits)
    difference = torch.stack(part).mean(0) - torch.stack(whole).mean(0)
    deviation = torch.stack(part).std(0) * (2 / 300) ** 0.5
    assert (difference.abs() < 5 * deviation).all()
    assert torch.stack(part).std(0) == pytest.approx(torch.stack(whole).std(0), rel=0.3)


def test_pieces_of_a_budget_and_autocast() -> None:
    model, batch = build().train(), make_batch()
    labels = torch.rand(len(LENGTHS))
    budgeted_step(model, batch, labels, BinaryCrossEntropyLoss(), 1000)
    wanted = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    with enable_padding_free(model):
        budgeted_step(model, batch, labels, BinaryCrossEntropyLoss(), 15)
        assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, wanted)
        with torch.autocast("cpu", torch.bfloat16):
            half = gradients(model, batch)
            assert tokens_of_last_layer(model, lambda: model(**batch)) == len(LENGTHS)
    assert_same_gradients(half, gradients(model, batch), rtol=0.15)


def test_a_model_without_layers_has_no_last_one() -> None:
    assert not reads_first_token(build("bert", num_hidden_layers=0))


def test_batches_without_padding_compute_first_tokens_alone_too() -> None:
    model = build().eval()
    batch = {"input_ids": torch.randint(3, 50, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    expected, seen = model(**batch).logits, []
    last = model.bert.encoder.layer[-1].intermediate
    last.register_forward_hook(lambda _, __, output: seen.append(output.shape[:-1].numel()))
    with enable_padding_free(model):
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    assert seen == [4]


def test_whoever_reads_more_gets_all_tokens() -> None:
    model, batch = build().eval(), make_batch()
    seen: list[Tensor] = []
    expected = model(**batch, output_hidden_states=True).hidden_states[-1] * batch["attention_mask"][:, :, None]
    with enable_padding_free(model):
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1]
        direct = model.bert(**batch).last_hidden_state
        for module in (model.bert, model.bert.encoder, model.bert.pooler):
            handle = module.register_forward_hook(lambda *given: seen.append(given))
            assert tokens_of_last_layer(model, lambda: model(**batch)) == sum(LENGTHS)
            handle.remove()
        assert tokens_of_last_layer(model, lambda: model(**batch)) == len(LENGTHS)
        model.config.output_hidden_states = True
        assert tokens_of_last_layer(model, lambda: model(**batch)) == sum(LENGTHS)
    tensors = (hidden, direct, seen[0][2][0], seen[1][2][0], seen[2][1][0])
    for found in tensors:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_under_it() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    model, batch = peft.get_peft_model(build(), settings).train(), make_batch()
    wanted = gradients(model, batch)
    with enable_padding_free(model):
        assert_same_gradients(gradients(model, batch), wanted)
        assert tokens_of_last_layer(model.get_base_model(), lambda: model(**batch)) == len(LENGTHS)


def test_own_classifiers_compute_all_tokens() -> None:
    class Own(type(build())):
        pass

    batch = make_batch()
    model = Own(build().config)
    with enable_padding_free(model):
        assert tokens_of_last_layer(model, lambda: model(**batch)) == sum(LENGTHS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_have_their_own_layer_and_removal_restores_it(
    copied: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    model, batch = build().eval(), make_batch()
    expected = model(**batch).logits
    with enable_padding_free(model):
        other = copied(model)
    assert "forward" not in vars(model.bert.encoder.layer[-1])
    with torch.no_grad():
        model.bert.encoder.layer[-1].output.dense.weight.zero_()
    assert tokens_of_last_layer(other, lambda: other(**batch)) == len(LENGTHS)
    torch.testing.assert_close(other(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    enable_padding_free(other).remove()
    other.bert.padding_free_handle.remove()
    assert torch.equal(other(**batch).logits, expected)
    assert first_token.__name__.encode() not in pickle.dumps(other)


class MeanHead(nn.Module):
    """Reads all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(32, 1)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(states.mean(1))


@pytest.mark.parametrize(("family", "place"), [("roberta", "classifier"), ("bert", "bert.pooler")])
def test_heads_of_others_get_all_tokens(family: str, place: str) -> None:
    model, batch = build(family), make_batch()
    model.set_submodule(place, MeanHead())
    if family == "bert":
        model.classifier = nn.Identity()
    with enable_padding_free(model):
        assert tokens_of_last_layer(model, lambda: model(**batch)) == sum(LENGTHS)
    assert not skip_unread_tokens(model.eval())


def test_hooks_that_were_there_before_get_all_tokens() -> None:
    for place in ("bert", "bert.encoder", "bert.pooler"):
        model, batch = build(), make_batch()
        model.get_submodule(place).register_forward_hook(lambda *_: None)
        with enable_padding_free(model):
            assert tokens_of_last_layer(model, lambda model=model, batch=batch: model(**batch)) == sum(LENGTHS)


def replicate(module: nn.Module) -> nn.Module:
    """As `nn.DataParallel` does for another device, with weights of its own."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(replica, name, replicate(child))
    for name, weight in module._parameters.items():
        setattr(replica, name, None if weight is None else weight.detach() * 1.5)
    return replica


def test_replicas_compute_with_their_own_weights() -> None:
    model, batch = build().eval(), make_batch()
    with enable_padding_free(model) as handle:
        replica = replicate(model)
        found, whole = replica(**batch).logits, replica(**batch, output_hidden_states=True).logits
        assert handle._least_padding(replica.bert, torch.device("cuda"), False) > 0
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    for logits in (found, whole):
        torch.testing.assert_close(logits, model(**batch).logits, rtol=1e-4, atol=1e-4)
