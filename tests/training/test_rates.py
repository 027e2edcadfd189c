"""Learning rates that fall from the head to the embeddings."""

from __future__ import annotations

import peft
import pytest
import torch
from conftest import build_model, build_tokenizer
from training.test_trainer import arguments, pairs
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    DistilBertConfig,
    ElectraConfig,
    MixtralConfig,
    ModernBertConfig,
    Qwen3Config,
)

from cross_trainer import CrossEncoderTrainer, PairCollator
from cross_trainer.errors import ConfigurationError
from cross_trainer.training.rates import depths

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}
DECODER = {**SMALL, "num_key_value_heads": 2}
FAMILIES = {  # the lowest, a first layer's, a last norm or pooler, the head
    "bert": (None, "bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.", "bert.pooler.", "classifier."),
    "electra": (
        *(ElectraConfig(**SMALL, embedding_size=8), "electra.embeddings_project.", "electra.encoder.layer.0."),
        *(None, "classifier.out_proj."),
    ),
    "distilbert": (
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=16),
        *("distilbert.embeddings.", "distilbert.transformer.layer.0.", "pre_classifier.", "classifier."),
    ),
    "modernbert": (
        ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=1, bos_token_id=1, eos_token_id=1),
        *("model.embeddings.", "model.layers.0.", "model.final_norm.", "classifier."),
    ),
    "qwen3": (Qwen3Config(**DECODER), "model.embed_tokens.", "model.layers.0.", "model.norm.", "score."),
    "mixtral": (
        MixtralConfig(**DECODER, num_local_experts=2, num_experts_per_tok=1),
        *("model.embed_tokens.", "model.layers.0.", "model.norm.", "score."),
    ),
}


def build(family):
    config = FAMILIES[family][0]
    return build_model() if config is None else AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_depths(family):
    model = build(family)
    layers = model.config.num_hidden_layers
    found = depths(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert set(found.values()) == set(range(layers + 2))
    for prefix, depth in zip(FAMILIES[family][1:], (layers + 1, layers, 0, 0), strict=True):
        if prefix is not None:
            assert {found[name] for name in found if name.startswith(prefix)} == {depth}


def test_models_without_one_stack_are_refused():
    for config in (
        BartConfig(
            vocab_size=50,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        ),
        AlbertConfig(**SMALL, embedding_size=8),
    ):
        model = AutoModelForSequenceClassification.from_config(config)
        with pytest.raises(ConfigurationError, match=r"layer_decay: \w+ has [02] stacks of 2 layers"):
            depths(model)


def trainer_of(tmp_path, model=None, **options):
    return CrossEncoderTrainer(
        build_model() if model is None else model,
        arguments(tmp_path, weight_decay=0.1, learning_rate=1e-3, **options.pop("args", {})),
        train_dataset=pairs(),
        data_collator=PairCollator(build_tokenizer()),
        **options,
    )


def test_rates_and_decay_of_all_weights(tmp_path):
    plain, scaled = trainer_of(tmp_path), trainer_of(tmp_path, layer_decay=0.5)
    depth = depths(scaled.model)
    weights = {parameter: name for name, parameter in scaled.model.named_parameters()}
    seen = set()
    for group in scaled.create_optimizer().param_groups:
        for parameter in group["params"]:
            seen.add(weights[parameter])
            assert group["lr"] == 1e-3 * 0.5 ** depth[weights[parameter]]
    assert seen == set(weights.values())
    decays = []
    for trainer in (plain, scaled):
        names = {parameter: name for name, parameter in trainer.model.named_parameters()}
        groups = trainer.create_optimizer().param_groups
        decays.append({names[each]: group["weight_decay"] for group in groups for each in group["params"]})
    assert decays[0] == decays[1]


def test_a_decay_of_1_trains_as_without(tmp_path):
    weights = []
    for decay in (None, 1.0):
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, layer_decay=decay, args={"max_steps": 3})
        trainer.train()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    torch.testing.assert_close(*weights)


def test_the_schedule_scales_all_rates_and_a_resumed_run_goes_on_with_them(tmp_path):
    options = {"layer_decay": 0.5, "args": {"max_steps": 4, "save_steps": 2, "save_strategy": "steps"}}
    torch.manual_seed(0)
    whole = trainer_of(tmp_path, **options)
    whole.train()
    torch.manual_seed(1)
    again = trainer_of(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    rates = sorted({group["lr"] for group in whole.optimizer.param_groups})
    assert rates == pytest.approx([0.0] * len(rates), abs=1e-9)


def test_adapters_have_their_layers_rate(tmp_path):
    settings = peft.LoraConfig(r=2, target_modules="all-linear")
    trainer = trainer_of(tmp_path, layer_decay=0.5, peft_config=settings)
    rates = {round(group["lr"], 9) for group in trainer.create_optimizer().param_groups if group["params"]}
    assert rates == {1e-3 * 0.5**depth for depth in range(trainer.model.config.num_hidden_layers + 1)}


@pytest.mark.parametrize("decay", [0, -0.5, 1.5, "0.9"])
def test_decays_out_of_range_are_refused(tmp_path, decay):
    with pytest.raises(ConfigurationError, match=r"layer_decay=.*expected a number above 0 and up to 1"):
        trainer_of(tmp_path, layer_decay=decay)


def test_an_optimiser_of_ones_own_is_refused(tmp_path):
    model = build_model()
    with pytest.raises(ConfigurationError, match=r"layer_decay=0\.9 is for the optimiser that the trainer makes"):
        trainer_of(tmp_path, model, layer_decay=0.9, optimizers=(torch.optim.SGD(model.parameters()), None))


def test_deepspeed_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, layer_decay=0.9)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ConfigurationError, match=r"layer_decay=0\.9 with DeepSpeed"):
        trainer.before_wrapping()
