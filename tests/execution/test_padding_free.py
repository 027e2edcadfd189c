"""Padding-free execution against the padded model it replaces: families, gradients, paths, hooks."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.integrations.neftune import neftune_post_forward_hook

from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.execution import attention
from cross_trainer.execution.attention import Layout, flat_attention
from cross_trainer.execution.dropout import CpuDropout
from cross_trainer.execution.padding_free import (
    DECODERS,
    ENCODERS,
    enable_padding_free,
    padding_free_obstacle,
    unpad_indices,
)
from cross_trainer.execution.token_budget import budgeted_step
from cross_trainer.execution.view import scoring_view, skip_unread_tokens
from cross_trainer.training.losses import BinaryCrossEntropyLoss

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT_LIKE = {**COMMON, **NO_DROPOUT, "max_position_embeddings": 64, "pad_token_id": 1, "initializer_range": 0.3}
ROPE = {**COMMON, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 1, "initializer_range": 0.3}
MODERN = {
    **COMMON,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "initializer_range": 0.3,
    "local_attention": 6,
    "global_attn_every_n_layers": 2,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
FAMILIES = {
    "bert": ("bert", BERT_LIKE),
    "roberta": ("roberta", BERT_LIKE),
    "xlm-roberta": ("xlm-roberta", BERT_LIKE),
    "camembert": ("camembert", BERT_LIKE),
    "distilbert": (
        "distilbert",
        {
            "vocab_size": 100,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "dropout": 0.0,
            "seq_classif_dropout": 0.0,
            "attention_dropout": 0.0,
            "max_position_embeddings": 64,
            "pad_token_id": 1,
            "initializer_range": 0.3,
        },
    ),
    "electra": ("electra", {**BERT_LIKE, "embedding_size": 16}),
    "albert": ("albert", {**BERT_LIKE, "embedding_size": 16, "classifier_dropout_prob": 0.0}),
    "modernbert-cls": ("modernbert", {**MODERN, "classifier_pooling": "cls"}),
    "modernbert-mean": ("modernbert", {**MODERN, "classifier_pooling": "mean"}),
    "eurobert": (
        "eurobert",
        {**ROPE, "classifier_pooling": "late", "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4},
    ),
    "llama": ("llama", ROPE),
    "mistral": ("mistral", {**ROPE, "sliding_window": 4}),
    "qwen2": ("qwen2", {**ROPE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**ROPE, "head_dim": 8}),
    "gemma": ("gemma", {**ROPE, "head_dim": 8}),
}
LENGTHS = (9, 3, 14, 9, 5, 1)


def build(family: str, **overrides: object) -> PreTrainedModel:
    model_type, settings = FAMILIES[family]
    attn = overrides.pop("attn_implementation", "sdpa")
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**settings, "num_labels": 2, **overrides})
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attn).eval()


def make_batch(
    lengths: tuple[int, ...] = LENGTHS, side: str = "right", seed: int = 1, **extra: Tensor
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    position = torch.arange(longest)
    real = torch.stack([position < n if side == "right" else position >= longest - n for n in lengths])
    ids = torch.randint(5, 100, (rows, longest), generator=generator).masked_fill(~real, 1)
    return {"input_ids": ids, "attention_mask": real.long(), **extra}


def logits_and_gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    logits = model(**batch).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    model: PreTrainedModel, batch: dict[str, Tensor], kernel: str | None = None, rtol: float = 1e-5
) -> None:
    expected, gradients = logits_and_gradients(model, batch)
    with enable_padding_free(model, kernel=kernel):
        found, found_gradients = logits_and_gradients(model, batch)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
    assert gradients.keys() == found_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        scale = max(gradient.abs().max().item(), 1e-2 * largest)  # a key's bias has a gradient of 0, plus rounding
        torch.testing.assert_close(found_gradients[name] / scale, gradient / scale, rtol=0, atol=10 * rtol, msg=name)


def is_flat(model: PreTrainedModel, batch: dict[str, Tensor]) -> bool:
    """Whether the layers see [1, T] tokens."""
    shapes = []
    layer = next(module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear))
    handle = layer.register_forward_hook(lambda *a: shapes.append(a[2].shape))
    model(**batch)
    handle.remove()
    return shapes[0][0] == 1


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_the_padded_models(family: str, training: bool) -> None:
    model = build(family).train(training)
    batch = make_batch()
    if FAMILIES[family][0] in {"bert", "electra", "albert"}:
        batch["token_type_ids"] = (torch.arange(14) > 4).long().expand(6, 14) * batch["attention_mask"]
    assert_same(model, batch)
    with enable_padding_free(model):
        assert is_flat(model, batch)


def test_every_supported_type_is_in_the_table() -> None:
    assert {model_type for model_type, _ in FAMILIES.values()} == ENCODERS | DECODERS


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_causal_models_take_left_padding(family: str) -> None:
    assert_same(build(family).train(), make_batch(side="left"))


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_on_embeddings_see_what_the_padded_model_shows(family: str) -> None:
    """Such as NEFTune's, whose noise is scaled by the length of a row."""
    model, batch, shapes = build(family).train(), make_batch(), []

    def disturb(_: torch.nn.Module, __: object, output: Tensor) -> Tensor:
        shapes.append(output.shape)
        noise = torch.linspace(-1, 1, output.numel()).view_as(output)
        return output + noise / (output.shape[1] * output.shape[2]) ** 0.5

    handle = model.get_input_embeddings().register_forward_hook(disturb)
    assert_same(model, batch, rtol=2e-5)
    assert len(set(shapes)) == 1
    assert shapes[0][:2] == batch["input_ids"].shape
    with enable_padding_free(model):
        assert is_flat(model, batch)
    disturbed = model(**batch).logits
    handle.remove()
    assert (disturbed - model(**batch).logits).abs().max() > 1e-4


@pytest.mark.parametrize("rows", [2, 32])
def test_the_noise_of_neftune_is_as_large_as_with_padding(rows: int) -> None:
    """5 / sqrt(L H) for rows of L = 14 padded tokens, however many tokens the batch holds."""
    model, batch, found = build("bert").train(), make_batch((14, *LENGTHS * 6)[:rows]), []
    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    embedding.register_forward_hook(lambda *given: found.append((given[2] - embedding.weight[given[1][0]]).detach()))
    with enable_padding_free(model):
        model(**batch)
    model(**batch)
    for noise in found:
        assert noise.abs().max().item() == pytest.approx(5 / (14 * 32) ** 0.5, rel=0.02)
        assert noise.std().item() == pytest.approx(5 / (14 * 32) ** 0.5 / 3**0.5, rel=0.05)


def test_prompt_tuning_runs_padded() -> None:
    """Its prompts are embeddings before each row, which flat tokens have no place for."""
    peft = pytest.importorskip("peft")
    settings = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model, batch = peft.get_peft_model(build("bert"), settings).eval(), make_batch()
    expected = model(**batch).logits
    with enable_padding_free(model):
        assert torch.equal(model(**batch).logits, expected)


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert-cls", "qwen2"])
def test_hidden_states_come_back_padded_with_zeros(family: str) -> None:
    model, batch = build(family), make_batch()
    expected = model(**batch, output_hidden_states=True).hidden_states
    with enable_padding_free(model):
        found = model(**batch, output_hidden_states=True).hidden_states
        last = model.base_model(**batch).last_hidden_state
        as_tuple = model.base_model(**batch, return_dict=False)
    real = batch["attention_mask"].bool()
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=1e-5)
        assert ours.shape == theirs.shape
        assert not ours[~real].any()
    assert torch.equal(last, found[-1])
    assert torch.equal(as_tuple[0], last)


def test_a_bare_model_keeps_its_pooled_output() -> None:
    torch.manual_seed(0)
    model = transformers.RobertaModel(AutoConfig.for_model("roberta", **BERT_LIKE)).eval()
    batch = make_batch()
    expected = model(**batch).pooler_output
    with enable_padding_free(model):
        torch.testing.assert_close(model(**batch).pooler_output, expected, rtol=1e-5, atol=1e-5)


def test_attentions_are_the_plain_models() -> None:
    model, batch = build("bert", attn_implementation="eager"), make_batch()
    expected = model(**batch, output_attentions=True).attentions
    with enable_padding_free(model):
        found = model(**batch, output_attentions=True).attentions
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_given_positions_are_used() -> None:
    model = build("bert")
    position_ids = torch.arange(14).flip(0).unsqueeze(0)
    assert_same(model, make_batch(position_ids=position_ids))
    assert not torch.allclose(model(**make_batch()).logits, model(**make_batch(position_ids=position_ids)).logits)


def test_a_row_without_tokens_is_zeros() -> None:
    model, batch = build("bert"), make_batch((4, 7, 0, 2))
    with enable_padding_free(model):
        hidden = model.base_model(**batch).last_hidden_state
        found = model(**batch).logits
    assert not hidden[2].any()
    torch.testing.assert_close(found[[0, 1, 3]], model(**batch).logits[[0, 1, 3]], rtol=1e-5, atol=1e-5)


def test_a_causal_model_gives_a_cache_only_when_asked() -> None:
    model, batch = build("llama"), make_batch()
    with enable_padding_free(model):
        assert model(**batch).past_key_values is None
        assert model(**batch, use_cache=True).past_key_values.get_seq_length() == 14


# --- the plain path ---------------------------------------------------------------------------------------------------


def test_the_plain_path_is_equal_to_the_bit() -> None:
    model, batch = build("bert"), make_batch()
    real = batch["attention_mask"]
    gap = {**batch, "attention_mask": real.clone()}
    gap["attention_mask"][0, 4] = 0
    plain = {
        "no mask": {"input_ids": batch["input_ids"]},
        "4-D mask": {**batch, "attention_mask": (real[:, None, None, :] > 0).expand(6, 1, 14, 14)},
        "gap": gap,
        "embeddings": {
            "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach(),
            "attention_mask": real,
        },
    }
    expected = {name: model(**inputs).logits for name, inputs in plain.items()}
    with enable_padding_free(model):
        for name, inputs in plain.items():
            assert torch.equal(model(**inputs).logits, expected[name]), name


@pytest.mark.parametrize("lengths", [(40, 40, 38), (8, 8)])
def test_batches_with_little_padding_take_the_plain_path(lengths: tuple[int, ...]) -> None:
    model, batch = build("distilbert"), make_batch(lengths)
    expected = model(**batch).logits
    with enable_padding_free(model):
        assert torch.equal(model(**batch).logits, expected)
        assert not is_flat(model, batch)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_plain_path_runs_the_configs_own_attention(implementation: str) -> None:
    model, batch = build("distilbert", attn_implementation=implementation), make_batch((8, 8))
    expected = logits_and_gradients(model, batch)
    with enable_padding_free(model):
        found = logits_and_gradients(model, batch)
        assert not is_flat(model, batch)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert-cls", "eurobert"])
def test_left_padded_encoders_are_refused(family: str) -> None:
    model = build(family)
    with (
        enable_padding_free(model),
        pytest.raises(ConfigurationError, match=r'Row 0 .*tokenizer.padding_side = "right"'),
    ):
        model(**make_batch(side="left"))


@pytest.mark.parametrize(
    ("build_model", "reason"),
    [
        (lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**COMMON)), "AttentionInterface.*max_tokens"),
        (lambda: transformers.MPNetModel(transformers.MPNetConfig(**COMMON)), "AttentionInterface.*max_tokens"),
        (
            lambda: transformers.XLMModel(transformers.XLMConfig(n_words=9, emb_dim=8, n_layers=1, n_heads=2)),
            "AttentionInter",
        ),
        (lambda: transformers.Phi3Model(transformers.Phi3Config(**COMMON, pad_token_id=0)), "haven.t been verified"),
        (lambda: build("bert", is_decoder=True), "is_decoder"),
        (lambda: build("bert", chunk_size_feed_forward=2), "chunk_size_feed_forward"),
        (lambda: torch.nn.Linear(2, 2), "not Linear.*before DDP"),
        (
            lambda: type("Own", (transformers.PreTrainedModel,), {})(AutoConfig.for_model("bert", **BERT_LIKE)),
            "own 'bert'",
        ),
    ],
    ids=["deberta", "mpnet", "xlm", "phi3", "decoder", "chunks", "linear", "foreign"],
)
def test_models_that_cannot_are_refused_with_the_reason(
    build_model: Callable[[], torch.nn.Module], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as error:
        enable_padding_free(build_model())
    assert padding_free_obstacle(build_model()) == str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_for_the_obstacle_changes_nothing(family: str) -> None:
    model = build(family)
    before = pickle.dumps(model)
    assert padding_free_obstacle(model) is None
    assert padding_free_obstacle(model.base_model) is None
    assert pickle.dumps(model) == before
    with enable_padding_free(model):
        assert padding_free_obstacle(model) is None


def test_the_obstacle_of_a_model_under_peft_is_that_of_the_model() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    assert padding_free_obstacle(peft.get_peft_model(build("bert"), config)) is None
    assert "chunk_size" in padding_free_obstacle(peft.get_peft_model(build("bert", chunk_size_feed_forward=2), config))


def test_another_kernel_needs_a_removed_handle() -> None:
    model = build("bert")
    with enable_padding_free(model), pytest.raises(ConfigurationError, match="remove that handle"):
        enable_padding_free(model, kernel="repad")


# --- the handle -------------------------------------------------------------------------------------------------------


def test_removal_restores_the_model_to_the_bit() -> None:
    model, batch = build("bert"), make_batch()
    before, hooks = model(**batch).logits, sum(len(m._forward_hooks) for m in model.modules())
    keys = set(model.base_model.__dict__)
    handle = enable_padding_free(model)
    free = model(**batch).logits
    handle.remove()
    handle.remove()
    assert torch.equal(model(**batch).logits, before)
    assert not torch.equal(free, before)  # same to rounding only: it did run differently
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert not model.base_model._forward_pre_hooks
    assert set(model.base_model.__dict__) == keys
    assert all(m.config is model.config for m in model.modules() if hasattr(m, "config"))


def test_nested_holders_do_not_remove_it_from_each_other() -> None:
    model, batch = build("bert"), make_batch()
    outer = enable_padding_free(model)
    with enable_padding_free(model) as inner:
        assert inner is outer
    assert is_flat(model, batch)
    outer.remove()
    assert not is_flat(model, batch)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_enabled_and_independent(copied: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
    model, batch = build("bert"), make_batch()
    handle = enable_padding_free(model)
    free = model(**batch).logits
    other = copied(model)
    handle.remove()
    assert is_flat(other, batch)
    assert not is_flat(model, batch)
    assert torch.equal(other(**batch).logits, free)
    twin = enable_padding_free(other)
    twin.remove()
    twin.remove()  # the copy took over one holder
    assert not is_flat(other, batch)


def test_saved_files_and_config_know_nothing_of_it(tmp_path) -> None:
    model = build("bert")
    model.save_pretrained(tmp_path / "plain")
    config = copy.deepcopy(model.config.__dict__)
    with enable_padding_free(model):
        model(**make_batch())
        model.save_pretrained(tmp_path / "free")
        assert model.config.__dict__ == config
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "free" / path.name).read_bytes()


def test_threads_and_models_do_not_disturb_one_another() -> None:
    families = ["bert", "bert", "modernbert-cls", "llama"]
    models = [build(name) for name in families]
    models[1] = models[0]  # one model in two threads
    batches = [make_batch(seed=7), make_batch((3, 12, 5), seed=8), make_batch(seed=9), make_batch((2, 9), seed=10)]
    for model in models:
        enable_padding_free(model)
    expected = [model(**batch).logits for model, batch in zip(models, batches, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(20) if not torch.equal(models[i](**batches[i]).logits, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_nested_evaluation_changes_nothing() -> None:
    outer, inner, batch = build("bert"), build("roberta"), make_batch()
    enable_padding_free(outer)
    enable_padding_free(inner)
    expected = outer(**batch).logits
    nested = []
    outer.base_model.encoder.layer[1].register_forward_pre_hook(
        lambda *_: nested.append(inner(**make_batch((5, 1))).logits)
    )
    assert torch.equal(outer(**batch).logits, expected)
    assert len(nested) == 1


# --- in the company of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["bert", "modernbert-cls", "qwen3"])
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model = build(family).train()
    expected = logits_and_gradients(model, make_batch())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with enable_padding_free(model):
        found = logits_and_gradients(model, make_batch())
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)


def test_lora() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(build("bert"), config).train()
    assert_same(model, make_batch())
    with enable_padding_free(model):
        assert is_flat(model, make_batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 1e-12], ids=["fused", "dropout"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_autocast(family: str, dropout: float, dtype: torch.dtype) -> None:
    name = "attention_dropout" if family == "llama" else "attention_probs_dropout_prob"
    model = build(family, **{name: dropout}).train()
    exact = model(**make_batch()).logits
    with torch.autocast("cpu", dtype):
        padded = logits_and_gradients(model, make_batch())
        with enable_padding_free(model):
            free = logits_and_gradients(model, make_batch())
    assert free[0].dtype == padded[0].dtype
    rounding = (padded[0] - exact).abs().max().item()
    torch.testing.assert_close(free[0].float(), exact, rtol=0, atol=4 * rounding + 1e-3)
    for key, gradient in padded[1].items():
        torch.testing.assert_close(free[1][key], gradient, rtol=0.2, atol=0.1 * gradient.abs().max().item() + 0.1)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    model, batch = build("bert").train(), make_batch()
    expected = logits_and_gradients(model, batch)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        enable_padding_free(model)
        found = logits_and_gradients(torch.nn.parallel.DistributedDataParallel(model), batch)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert len(found[1]) == len(expected[1])


def test_fully_sharded_data_parallel(tmp_path: Path) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    model, batch = build("bert").train(), make_batch()
    expected = logits_and_gradients(model, batch)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        enable_padding_free(model)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for layer in model.base_model.encoder.layer:
            fsdp.fully_shard(layer, mesh=mesh)
        fsdp.fully_shard(model, mesh=mesh)
        logits, gradients = logits_and_gradients(model, batch)
        found = {name: gradient.full_tensor() for name, gradient in gradients.items()}
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(logits, expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_compile_makes_one_graph_of_any_shape(family: str) -> None:
    """With `unpad_idx` among the inputs nothing asks the host for a number: one graph, traced without a compiler."""
    model = build(family)
    batches = [make_batch(), make_batch((7, 2, 11)), make_batch((3, 20, 6, 9))]
    for batch in batches:
        batch["unpad_idx"] = unpad_indices(batch["attention_mask"])
    expected = [model(**batch).logits for batch in batches]
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(len(graph.graph.nodes))
        return graph

    torch.compiler.reset()
    enable_padding_free(model)
    flat = is_flat(model, batches[0])
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch, logits in zip(batches, expected, strict=True):
        torch.testing.assert_close(compiled(**batch).logits, logits, rtol=1e-5, atol=1e-5)
    assert flat
    assert len(graphs) == 1


# --- traced -----------------------------------------------------------------------------------------------------------


class Logits(torch.nn.Module):
    """Two tensors in, logits out, which is what a tracer wants."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


TRACED = ["bert", "electra", "modernbert-cls", "modernbert-mean", "llama", "qwen2", "qwen3"]
OTHER_SHAPES = [(7, 2, 11), (8, 8), (3, 20, 6, 9), (5,)]


def trace(model: torch.nn.Module, lengths: tuple[int, ...] = LENGTHS) -> torch.jit.ScriptModule:
    batch = make_batch(lengths)
    return torch.jit.trace(Logits(model), (batch["input_ids"], batch["attention_mask"]), check_trace=False)


def export(model: torch.nn.Module) -> torch.nn.Module:
    batch = make_batch()
    sizes = dict.fromkeys(batch, (torch.export.Dim.AUTO, torch.export.Dim.AUTO))
    inputs = (batch["input_ids"], batch["attention_mask"])
    return torch.export.export(Logits(model), inputs, dynamic_shapes=sizes).module()


@pytest.mark.parametrize("traced", [trace, export])
@pytest.mark.parametrize("family", TRACED)
def test_a_traced_model_is_the_padded_one_for_any_shape(family: str, traced: Callable[..., torch.nn.Module]) -> None:
    model = build(family)
    batches = [make_batch(lengths) for lengths in (LENGTHS, *OTHER_SHAPES)]
    padded = [model(**batch).logits for batch in batches]
    with enable_padding_free(model):
        graph = traced(model)
        eager = [model(**batch).logits for batch in batches]
    for batch, before, now in zip(batches, padded, eager, strict=True):
        found = graph(batch["input_ids"], batch["attention_mask"])
        assert torch.equal(found, before)
        torch.testing.assert_close(found, now, rtol=1e-5, atol=1e-5)


def test_a_trace_of_a_batch_without_padding_takes_padding() -> None:
    model, batch = build("bert"), make_batch()
    with enable_padding_free(model):
        graph = trace(model, (8, 8))
    assert torch.equal(graph(batch["input_ids"], batch["attention_mask"]), model(**batch).logits)


def test_a_trace_in_training_can_be_saved_and_has_torchs_dropout(tmp_path: Path) -> None:
    model, batch = build("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train(), make_batch()
    with enable_padding_free(model):
        graph = trace(model)
    assert "aten::dropout" in str(graph.inlined_graph)
    assert "PythonOp" not in str(graph.inlined_graph)
    graph.save(tmp_path / "traced.pt")
    loaded = torch.jit.load(tmp_path / "traced.pt").eval()
    assert loaded(batch["input_ids"], batch["attention_mask"]).shape == (6, 2)


def test_indices_for_the_compiler_do_not_get_into_a_trace() -> None:
    class WithIndices(Logits):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, unpad_idx: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, unpad_idx=unpad_idx).logits

    model = build("bert")
    batches = [make_batch(lengths) for lengths in (LENGTHS, (7, 2, 11))]
    inputs = [(b["input_ids"], b["attention_mask"], unpad_indices(b["attention_mask"])) for b in batches]
    with enable_padding_free(model):
        graph = torch.jit.trace(WithIndices(model), inputs[0], check_trace=False)
    for batch, tensors in zip(batches, inputs, strict=True):
        assert torch.equal(graph(*tensors), model(**batch).logits)


def test_the_legacy_onnx_exporter_writes_a_graph_of_plain_operators(tmp_path: Path, monkeypatch) -> None:
    if importlib.util.find_spec("onnx") is None:  # needed by the last step alone, which has nothing to add here
        step = "torch.onnx._internal.torchscript_exporter.onnx_proto_utils._add_onnxscript_fn"
        monkeypatch.setattr(step, lambda proto, _: proto)
    batch, file = make_batch(), tmp_path / "model.onnx"
    model = build("bert")
    with enable_padding_free(model):
        torch.onnx.export(Logits(model), (batch["input_ids"], batch["attention_mask"]), file, dynamo=False)
    assert b"MatMul" in file.read_bytes()


def test_a_traced_scoring_view_computes_the_first_token_of_any_batch() -> None:
    model, batches = build("bert"), [make_batch(lengths) for lengths in (LENGTHS, *OTHER_SHAPES)]
    view = scoring_view(model)
    enable_padding_free(view)
    assert skip_unread_tokens(view)
    graph = trace(view)
    for batch in batches:
        found = graph(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(found, model(**batch).logits, rtol=1e-5, atol=1e-5)


def test_tensors_without_numbers_run_padded() -> None:
    """Shapes and memory are estimated with such tensors, which have no lengths to read."""
    with FakeTensorMode():
        model, batch = build("bert"), make_batch()
        with enable_padding_free(model):
            assert model.base_model(**batch).last_hidden_state.shape == (6, 14, 32)
            assert not is_flat(model, batch)


# --- leaving nothing behind -------------------------------------------------------------------------------------------

LOADER = """
import pickle, sys
sys.modules["cross_trainer"] = None  # any import of it fails
with open(sys.argv[1], "rb") as file:
    model, batch, logits = pickle.load(file)
import torch
torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-5, atol=1e-6)
print("same", type(model).__name__)
"""


@pytest.mark.parametrize("family", ["bert", "modernbert-cls", "qwen3"])
def test_a_trained_model_loads_where_the_package_is_missing(tmp_path: Path, family: str) -> None:
    rate = {"bert": "hidden_dropout_prob", "modernbert-cls": "mlp_dropout", "qwen3": "attention_dropout"}[family]
    model, batch = build(family, **{rate: 0.1}).train(), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = enable_padding_free(model)
    budgeted_step(model, batch, torch.zeros(6, 2), BinaryCrossEntropyLoss(), max_tokens=20)
    optimizer.step()
    assert b"cross_trainer" in pickle.dumps(model)
    handle.remove()
    model.eval()
    written = pickle.dumps((model, batch, model(**batch).logits.detach()))
    assert b"cross_trainer" not in written
    (tmp_path / "model.pickle").write_bytes(written)
    command = [sys.executable, "-c", LOADER, str(tmp_path / "model.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"same {type(model).__name__}", done.stderr


def test_layers_copied_while_enabled_are_restored_too() -> None:
    model, batch = build("bert", hidden_dropout_prob=0.1), make_batch()
    handle = enable_padding_free(model)
    model.bert.encoder.layer.append(copy.deepcopy(model.bert.encoder.layer[0]))
    assert is_flat(model, batch)
    handle.remove()
    assert b"cross_trainer" not in pickle.dumps(model)
    assert model(**batch).logits.isfinite().all()


# --- attention on flat tokens -----------------------------------------------------------------------------------------

GROUPS = ((1, 3), (2, 6), (1, 11))
TOKENS = sum(n * s for n, s in GROUPS)


def make_layout(kernel: str | None = None) -> Layout:
    lengths = [s for n, s in GROUPS for _ in range(n)]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Layout(unpad_indices(mask), mask, GROUPS, kernel)


def make_states(heads: int = 4, dtype: torch.dtype = torch.float32, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(1, h, TOKENS, width, generator=generator, dtype=dtype).requires_grad_() for h in (4, heads, heads)
    ]


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None) -> Tensor:
    """Token by token, by the definition."""
    key, value = (x.repeat_interleave(4 // x.shape[1], 1) for x in (key, value))
    owner = torch.tensor([i for i, s in enumerate(s for n, s in GROUPS for _ in range(n)) for _ in range(s)])
    output = torch.zeros_like(query)
    for i in range(TOKENS):
        seen = [
            j
            for j in range(TOKENS)
            if owner[i] == owner[j] and (not causal or j <= i) and (window is None or abs(i - j) < window)
        ]
        weights = torch.softmax((query[0, :, i, None] * key[0, :, seen]).sum(-1) / query.shape[-1] ** 0.5, -1)
        output[0, :, i] = (weights[..., None] * value[0, :, seen]).sum(1)
    return output


def varlen_reference(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa) -> Tensor:
    """`varlen_attn` as its documentation has it, one sequence and one query at a time."""
    assert cu_q.dtype == torch.int32
    assert (max_q, max_k) == ((cu_q[1:] - cu_q[:-1]).max(), (cu_k[1:] - cu_k[:-1]).max())
    assert enable_gqa == (q.shape[1] != k.shape[1])
    repeat = q.shape[1] // k.shape[1]
    left, right = (10**6 if size < 0 else size for size in window_size)
    rows = []
    for first, last, start, end in zip(*(x.tolist() for x in (cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:])), strict=True):
        for i in range(last - first):
            a, b = max(start, start + i - left), min(end, start + i + right + 1)
            keys, values = (x[a:b].repeat_interleave(repeat, 1) for x in (k, v))
            weights = torch.softmax(torch.einsum("hd,shd->hs", q[first + i], keys) * scale, -1)
            rows.append(torch.einsum("hs,shd->hd", weights, values))
    return torch.stack(rows)


@pytest.mark.parametrize("kernel", ["groups", "dropout", "repad", "varlen"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [4, 2])
def test_every_kernel_follows_the_definition(
    monkeypatch, kernel: str, window: int | None, causal: bool, heads: int
) -> None:
    monkeypatch.setattr(attention, "_varlen_function", lambda: varlen_reference)
    states = make_states(heads)
    dropout = 1e-12 if kernel == "dropout" else 0.0  # drops nothing, but takes that path
    layout = make_layout("groups" if kernel == "dropout" else kernel)
    output = flat_attention(*states, layout, dropout=dropout, causal=causal, window=window).transpose(1, 2)
    expected = naive(*states, causal, window)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    for found, wanted in zip(
        torch.autograd.grad(output, states, towards), torch.autograd.grad(expected, states, towards), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_window_matters() -> None:
    states = make_states()
    outputs = [flat_attention(*states, make_layout(), window=window) for window in (None, 3, 4)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert torch.equal(outputs[0], flat_attention(*states, make_layout(), window=11))


def test_dropout_drops_weights_at_its_rate_and_scales_the_rest() -> None:
    """Values that are the unit vectors make the output show the weights themselves."""
    length, heads = 64, 24
    query, key = torch.randn(2, 1, heads, length, length).unbind()
    value = torch.eye(length).expand(1, heads, length, length)
    layout = Layout(torch.arange(length), torch.ones(1, length, dtype=torch.bool), ((1, length),))
    weights = torch.softmax(query @ key.transpose(2, 3) / length**0.5, -1)
    for rate in (0.1, 0.5):
        found = flat_attention(query, key, value, layout, dropout=rate).transpose(1, 2)
        kept = found != 0
        deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
        assert abs(1 - kept.float().mean().item() - rate) < 5 * deviation
        torch.testing.assert_close(found[kept], (weights / (1 - rate))[kept], rtol=1e-5, atol=1e-6)


def test_the_gradient_with_dropout_is_that_of_the_same_mask() -> None:
    states = make_states(dtype=torch.float64, width=2)

    def attend(*inputs: Tensor) -> Tensor:
        torch.manual_seed(5)
        return flat_attention(*inputs, make_layout(), dropout=0.3, causal=True, window=5)

    assert torch.autograd.gradcheck(attend, states, fast_mode=True)


def test_dropout_of_the_checkpoint_is_active_in_training_only() -> None:
    model, batch = build("bert", attention_probs_dropout_prob=0.5), make_batch()
    with enable_padding_free(model):
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        model.train()
        torch.manual_seed(0)
        first = model(**batch).logits
        assert not torch.equal(model(**batch).logits, first)
        torch.manual_seed(0)
        assert torch.equal(model(**batch).logits, first)


def test_hidden_dropout_is_the_fast_one_until_removed() -> None:
    model = build("bert", hidden_dropout_prob=0.5)
    layers = [m for m in model.bert.modules() if isinstance(m, torch.nn.Dropout)]
    with enable_padding_free(model):
        assert {type(m) for m in layers} == {CpuDropout}
    assert {type(m) for m in layers} == {torch.nn.Dropout}


@pytest.mark.parametrize("kernel", ["repad", "varlen"])
@pytest.mark.parametrize("family", ["bert", "modernbert-mean", "qwen2"])
def test_a_kernel_can_be_forced(monkeypatch, family: str, kernel: str) -> None:
    calls = []
    monkeypatch.setattr(
        attention, "_varlen_function", lambda: lambda *a, **k: calls.append(k) or varlen_reference(*a, **k)
    )
    assert_same(build(family).train(), make_batch(), kernel=kernel)
    assert len(calls) == (2 if kernel == "varlen" else 0)


class _Cuda:
    """What the choice of a kernel asks of a query on a GPU."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, width: int = 64) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda"), dtype, (1, 4, TOKENS, width)


@pytest.mark.parametrize(
    ("query", "dropout", "generation", "kernel", "reason"),
    [
        (_Cuda(), 0.0, (8, 0), "varlen", "takes flat tokens"),
        (_Cuda(torch.float16), 0.0, (8, 9), "varlen", "takes flat tokens"),
        (_Cuda(), 0.1, (9, 0), "repad", "no attention dropout"),
        (_Cuda(torch.float32), 0.0, (9, 0), "repad", "half precision, not torch.float32"),
        (_Cuda(width=12), 0.0, (9, 0), "repad", "not 12"),
        (_Cuda(width=256), 0.0, (9, 0), "varlen", "takes flat tokens"),
        (_Cuda(width=256), 0.0, (8, 6), "repad", "up to 192, not 256"),
        (_Cuda(torch.float16), 0.0, (7, 5), "repad", "capability 8.0 or more, not (7, 5)"),
    ],
)
def test_the_kernel_on_a_gpu_is_chosen_and_logged_once(
    monkeypatch, caplog, query, dropout, generation, kernel, reason
) -> None:
    monkeypatch.setattr(attention, "_varlen_function", lambda: varlen_reference)
    monkeypatch.setattr(attention, "_generation", lambda _: generation)
    attention._varlen_missing.cache_clear()
    attention._log_choice.cache_clear()
    settings = attention.Settings(dropout, 1.0, False, None)
    with caplog.at_level("INFO", logger="cross_trainer.execution.attention"):
        assert [attention._choose(query, make_layout(), settings) for _ in range(3)] == [kernel] * 3
    attention._varlen_missing.cache_clear()
    assert len(caplog.records) == 1
    assert reason in caplog.text


def test_a_torch_without_what_varlen_needs_pads(monkeypatch) -> None:
    attention._varlen_missing.cache_clear()
    monkeypatch.setattr(attention, "_varlen_function", lambda: lambda query, key, value, scale: query)
    assert "no enable_gqa, window_size" in attention._varlen_missing()
    attention._varlen_missing.cache_clear()


def test_the_installed_varlen_has_the_arguments_we_pass() -> None:
    attention._varlen_missing.cache_clear()
    missing = attention._varlen_missing()
    if torch.__version__ < "2.13":
        pytest.skip("an older torch may lack some")
    assert missing is None


def test_kernels_that_need_what_is_not_there_say_so(monkeypatch) -> None:
    states, layout = make_states(), make_layout("varlen")
    with pytest.raises(ConfigurationError, match="no attention dropout"):
        flat_attention(*states, layout, dropout=0.1)
    with pytest.raises(ConfigurationError, match="can't be compiled"):
        flat_attention(*states, Layout(layout.index, layout.mask, None, "groups"))
