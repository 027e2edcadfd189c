"""The model as it is scored with: it follows every change of the model, and its head computes in float32."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import peft
import pytest
import torch
from conftest import SENTENCES, build_model, build_tokenizer
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers import BertConfig, BertForSequenceClassification, Qwen3Config, Qwen3ForSequenceClassification

from cross_trainer.errors import UnsupportedModelError
from cross_trainer.execution.linears import largest_weight
from cross_trainer.execution.view import compute_head_in_float32, scoring_view, structure
from cross_trainer.scoring.cross_encoder import CrossEncoder

PAIRS = [("a man", sentence) for sentence in SENTENCES]
DOCUMENTS = [f"{a} {b} {c}" for a in SENTENCES for b in SENTENCES for c in SENTENCES][:1000]


def build_lora(**options) -> peft.PeftModel:
    """A model with two adapters that change its scores."""
    settings = {"task_type": "SEQ_CLS", "r": 4, "init_lora_weights": False, "target_modules": ["query", "value"]}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = peft.get_peft_model(build_model(), peft.LoraConfig(**settings, **options))
        model.add_adapter("other", peft.LoraConfig(**settings))
    return model.eval()


def logits(model, **options) -> np.ndarray:
    return CrossEncoder(model, tokenizer=build_tokenizer(), **options).predict(PAIRS, activation="logits")


def plain_logits(model) -> np.ndarray:
    with torch.no_grad():
        rows = [build_tokenizer()(*pair, return_tensors="pt") for pair in PAIRS]
        return np.array([model.eval()(**row).logits.item() for row in rows])


class Twice(nn.Module):
    def forward(self, values):
        return 2 * values


def scale(model):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 5


CHANGES = {
    "set_adapter": (build_lora, lambda model: model.set_adapter("other")),
    "disable_adapter_layers": (build_lora, lambda model: model.base_model.disable_adapter_layers()),
    "scaling": (build_lora, scale),
    "merge_adapter": (build_lora, lambda model: model.merge_adapter()),
    "merged, then disabled": (
        build_lora,
        lambda model: (model.merge_adapter(), model.base_model.disable_adapter_layers()),
    ),
    "delete_adapter": (build_lora, lambda model: (model.set_adapter("other"), model.delete_adapter("default"))),
    "forward hook": (build_model, lambda model: model.classifier.register_forward_hook(lambda *a: a[2] * 2)),
    "pre-hook": (build_model, lambda model: model.classifier.register_forward_pre_hook(lambda _, x: (x[0] * 2,))),
    "module": (build_model, lambda model: setattr(model, "classifier", nn.Linear(32, 1))),
    "activation": (build_model, lambda model: setattr(model.bert.pooler, "activation", nn.Identity())),
    "attribute": (build_model, lambda model: setattr(model.bert.encoder.layer[0].output.LayerNorm, "eps", 0.5)),
    "method": (build_model, lambda model: setattr(model.classifier, "forward", lambda states: states[:, :1])),
    "parametrization": (
        build_model,
        lambda model: parametrize.register_parametrization(model.classifier, "weight", Twice()),
    ),
    "weight norm": (
        build_model,
        lambda model: setattr(
            parametrizations.weight_norm(model.classifier).parametrizations.weight.original0, "data", torch.ones(1, 1)
        ),
    ),
    "weights": (build_model, lambda model: model.classifier.weight.data.mul_(3)),
}


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("change", CHANGES)
def test_scores_follow_every_change_of_the_model(change, quantize):
    build, apply = CHANGES[change]
    model = build()
    encoder = CrossEncoder(model, tokenizer=build_tokenizer(), quantize=quantize)
    before = encoder.predict(PAIRS, activation="logits")
    apply(model)
    after = encoder.predict(PAIRS, activation="logits")
    assert change == "merge_adapter" or np.abs(after - before).max() > 0.02
    rounded = 0.3 if largest_weight() == 127 else 0.7
    np.testing.assert_allclose(after, plain_logits(model), atol=rounded if quantize else 1e-5)


def test_an_adapter_switched_off_for_a_while():
    model = build_lora()
    encoder = CrossEncoder(model, tokenizer=build_tokenizer())
    first = encoder.predict(PAIRS, activation="logits")
    with model.disable_adapter():
        np.testing.assert_allclose(encoder.predict(PAIRS, activation="logits"), logits(build_model()), atol=1e-5)
    np.testing.assert_array_equal(encoder.predict(PAIRS, activation="logits"), first)


def test_scoring_leaves_merged_weights_alone():
    """PEFT takes merged adapters out again when it runs with adapters off; a view must not do that a second time."""
    model = build_lora()
    model.merge_adapter()
    model.base_model.disable_adapter_layers()
    for _ in range(3):
        np.testing.assert_allclose(logits(model), logits(build_model()), atol=1e-5)
    model.base_model.enable_adapter_layers()
    np.testing.assert_allclose(logits(model), logits(build_lora()), atol=1e-5)


def test_the_config_counts_and_modes_dont():
    model = build_model()
    before = structure(model)
    model.train()
    assert all(one is other for one, other in zip(before, structure(model), strict=True))
    model.config.new_setting = 1.5
    assert len(structure(model)) > len(before)


def test_a_tensor_that_is_no_parameter_is_shared():
    model = build_model()
    model.bert.pooler.temperature = torch.ones(()).requires_grad_() * 2  # no leaf: it can't be copied
    view = scoring_view(model)
    assert view.bert.pooler.temperature is model.bert.pooler.temperature
    assert view.classifier.weight is model.classifier.weight


def test_noticing_is_fast():
    config = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=12)
    model = BertForSequenceClassification(config)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        structure(model)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.003  # 0.6 ms on an idle core


# -- 8 bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["pooler"]}])
def test_int8_scores_with_adapters_are_those_of_the_merged_model(options):
    model = build_lora(**options)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    scores = logits(model, quantize="int8")
    np.testing.assert_allclose(scores, logits(build_lora(**options).merge_and_unload(), quantize="int8"), atol=1e-5)
    assert 0 < np.abs(scores - logits(model)).max() < 0.25
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_int8_refuses_what_cant_be_merged():
    config = peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"])
    model = peft.get_peft_model(build_model(), config)
    for module in model.modules():
        if hasattr(module, "get_base_layer"):
            module.merge = lambda *_, **__: (_ for _ in ()).throw(NotImplementedError("no weights to merge into"))
    with pytest.raises(UnsupportedModelError, match=r'quantize="int8" merges.*LNTuningLayer can.t be merged'):
        logits(model, quantize="int8")


# -- the head ----------------------------------------------------------------------------------------------------------


def decoder():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SMALL, num_key_value_heads=2, initializer_range=0.3))


def roberta():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(**SMALL, type_vocab_size=2, initializer_range=0.3))


def modernbert():
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    torch.manual_seed(0)
    config = ModernBertConfig(**SMALL, initializer_range=0.3, cls_token_id=2, sep_token_id=3)
    return ModernBertForSequenceClassification(config)


SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FAMILIES = {"bert": build_model, "roberta": roberta, "modernbert": modernbert, "llama": decoder, "lora": build_lora}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_tells_a_thousand_pairs_apart(family, dtype):
    model, tokenizer = FAMILIES[family](), build_tokenizer()
    if family in {"llama", "modernbert"}:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    encoder = CrossEncoder(model, tokenizer=tokenizer, dtype=dtype)
    scores = encoder.predict([("a man", text) for text in DOCUMENTS], activation="logits")
    assert len(set(scores.tolist())) > 990
    assert all(parameter.dtype == encoder.model.dtype for parameter in model.parameters())


def test_autocast_doesnt_round_scores():
    encoder = CrossEncoder(build_model(), tokenizer=build_tokenizer())
    with torch.autocast("cpu", torch.bfloat16):
        scores = encoder.predict([("a man", text) for text in DOCUMENTS[:300]], activation="logits")
    assert len(set(scores.tolist())) > 295


def test_a_head_of_unknown_layers_stays():
    model = build_model()
    model.classifier = nn.Bilinear(32, 32, 1)
    assert not compute_head_in_float32(model)
    assert "forward" not in vars(model.bert.pooler.dense)


def test_a_decoder_keeps_its_padding_unless_another_is_named():
    model = Qwen3ForSequenceClassification(
        Qwen3Config(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=3)
    )
    assert scoring_view(model).config.pad_token_id == 3
    assert scoring_view(model, 5).config.pad_token_id == 5
    assert model.config.pad_token_id == 3


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "DEFAULT"])
def test_products_of_8_bits_are_exact_on_every_processor(isa):
    code = """
import torch
from cross_trainer.execution.linears import largest_weight
from cross_trainer.internals import multiply_int8
most = largest_weight()
states, weights = torch.randint(-127, 128, (40, 64)), torch.randint(-most, most + 1, (64, 48))
states[0], weights[:, 0] = 127, most
states[1], weights[:, 1] = -127, -most
found = multiply_int8(states.to(torch.int8), weights.to(torch.int8))
assert torch.equal(found.long(), states @ weights), most
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
