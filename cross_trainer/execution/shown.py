"""What a model gives the few pairs that its card shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cross_trainer.data.pairs import Pair, check_truncation, encode_pairs, pad_pairs
from cross_trainer.data.templates import Template
from cross_trainer.saved.activation import saved_activation
from cross_trainer.saved.folder import saved_template
from cross_trainer.saved.reading import padding_side
from cross_trainer.saved.usage import Usage, pipeline_results


def run_usage(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], max_length: int | None, truncation: str = "longest_first"
) -> Usage:
    """What a loaded model gives pairs, computed here, and by transformers' pipeline if it isn't an adapter.

    Args:
        model: In the precision that it is saved in.
        tokenizer: Its tokenizer.
        pairs: P pairs.
        max_length: Tokens of a pair at most; None for no limit.
        truncation: Which text of a longer pair is cut.
    """
    saved = saved_template(model.config)
    template = None if saved is None else Template.of(saved)
    if template is not None and template.takes_instruction and template.instruction is None and template.bare is None:
        return Usage(pairs)  # which have no instruction
    encoded = encode_pairs(tokenizer, pairs, max_length, check_truncation(truncation), template=template)
    batch = pad_pairs(tokenizer, encoded.features, side=padding_side(model, tokenizer))
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.float()
    model.train(training)
    scores = saved_activation(model.config)(logits)
    plain = template is None and not hasattr(model, "peft_config")  # transformers' pipeline knows no template
    results = pipeline_results(model, tokenizer, pairs, max_length) if plain else None
    return Usage(pairs, (scores[:, 0] if scores.shape[1] == 1 else scores).tolist(), results)
