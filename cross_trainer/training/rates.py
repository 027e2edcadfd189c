"""Learning rates that fall from the head to the embeddings.

    scale_by_depth(optimizer, model, 0.9)    # `CrossEncoderTrainer(layer_decay=0.9)` and `--layer_decay` come here

Lower layers hold what pretraining has learnt about language in general, and need smaller steps than a new head.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from cross_trainer.errors import ConfigurationError


def depths(model: Any) -> dict[str, int]:
    """How far below the head each parameter lies: 0 for the head, 1 for the last layer, and the embeddings lowest.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    >>> found = depths(BertForSequenceClassification(config))
    >>> [found[name] for name in ("classifier.weight", "bert.encoder.layer.0.output.dense.bias")]
    [0, 2]
    >>> found["bert.embeddings.word_embeddings.weight"]
    3

    Args:
        model: A classifier, under PEFT or not.

    Raises:
        ConfigurationError: It hasn't one stack of layers, or they share their weights.
    """
    stack, count = _layers(model)
    found, before = {}, True  # the embeddings stand before the layers, and a last norm, pooler and head after them
    for name, _ in model.named_parameters():
        inside = name.startswith(f"{stack}.")
        before = before and not inside
        layer = -1 if before else int(name[len(stack) + 1 :].partition(".")[0]) if inside else count
        found[name] = count - layer
    return found


def check_decay(decay: float | None, optimizers: tuple[Any, Any]) -> None:
    """Check what `CrossEncoderTrainer` is asked for.

    Raises:
        ConfigurationError: The decay is out of its range, or an optimiser is given, whose rates are its own.
    """
    if decay is None:
        return
    if not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise ConfigurationError(f"layer_decay={decay!r}: expected a number above 0 and up to 1, such as 0.9.")
    if optimizers[0] is not None:
        raise ConfigurationError(
            f"layer_decay={decay} is for the optimiser that the trainer makes, and optimizers gives one. Leave one out."
        )


def scale_by_depth(optimizer: Any, model: Any, decay: float) -> None:
    """Multiply learning rates by `decay` once for each step down from the head; see `depths`.

    Paper: Clark et al. 2020, ELECTRA, which calls it layerwise learning-rate decay.

    Args:
        optimizer: Over parameters of the model, in any groups. They are split by depth, in place.
        model: See `depths`.
        decay: Between 0 and 1, such as 0.9.

    Raises:
        ConfigurationError: As `depths`; or the optimiser has no rates of its own for groups of these parameters.
    """
    by_name = depths(model)
    depth = {id(parameter): by_name[name] for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        if "lr" not in group or any(id(parameter) not in depth for parameter in group["params"]):
            raise ConfigurationError(
                f"layer_decay: {type(optimizer).__name__} has no learning rates for groups of the model's weights. "
                "Choose another optim, or leave layer_decay out."
            )
        parts: dict[int, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            parts[depth[id(parameter)]].append(parameter)
        groups += [
            {**group, "params": members, "lr": group["lr"] * decay**steps} for steps, members in sorted(parts.items())
        ]
    optimizer.param_groups[:] = groups


def _layers(model: Any) -> tuple[str, int]:
    """The name of the stack of layers, and how many they are."""
    count = int(getattr(model.config, "num_hidden_layers", 0))
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and ".experts" not in name
    ]
    if not count or len(stacks) != 1 or any("_flat_param" in name for name, _ in model.named_parameters()):
        raise ConfigurationError(
            f"layer_decay: {type(model).__name__} has {len(stacks)} stacks of {count} layers with weights of their "
            "own, and learning rates fall along one whose weights aren't flattened. Leave layer_decay out."
        )
    return stacks[0], count
