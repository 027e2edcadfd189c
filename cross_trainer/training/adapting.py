"""Adapters of peft put on a classifier, whose head is trained whole beside them.

    model = put_adapter_on(model, peft.LoraConfig(r=16, target_modules="all-linear"))

`CrossEncoderTrainer(peft_config=...)` and `--lora` of the command line come here.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from transformers import set_seed

from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.adapters import import_peft, is_adapted

logger = logging.getLogger(__name__)


def head_modules(model: Any) -> list[str]:
    """The modules of a classifier that turn states into logits: what isn't the transformer, and its pooler.

    Pretrained files often lack them, so that their weights are new.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> head_modules(BertForSequenceClassification(BertConfig(hidden_size=8, num_attention_heads=2)))
    ['classifier', 'pooler']
    """
    own = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and next(module.parameters(), None) is not None
    ]
    inside = {name for name, module in model.base_model.named_children() if module is not None}
    return [*own, *sorted({"pooler"} & inside)]


def put_adapter_on(model: Any, settings: Any, seed: int | None = None) -> Any:
    """A `PeftModel` of a classifier; what it trains, the adapter and the head, is in float32.

    Args:
        model: A sequence classifier of transformers, without adapters; None stays None.
        settings: A `peft.PeftConfig`, which stays as it is. Its task is that of a classifier; where it has no
            `modules_to_save`, these are the head; "all-linear" leaves them out. None leaves the model as it is.
        seed: Of the adapter's weights. Default: as torch's random numbers go on.

    Raises:
        ConfigurationError: The model has adapters already, or the settings don't fit it.
        MissingDependencyError: peft isn't installed.
    """
    if model is None or settings is None:
        return model
    peft = import_peft("peft_config")
    if seed is not None:
        set_seed(seed)
    if is_adapted(model):
        raise ConfigurationError(
            f"The {type(model).__name__} has adapters already, which are trained on. Leave peft_config (--lora) out, "
            "or merge them first: CrossEncoder(folder).save_pretrained(another, merge_adapters=True)."
        )
    settings = copy.deepcopy(settings)
    if getattr(settings, "modules_to_save", None) is None and hasattr(settings, "modules_to_save"):
        settings.modules_to_save = head_modules(model)
    settings.task_type = peft.TaskType.SEQ_CLS
    try:
        adapted: Any = peft.get_peft_model(model, settings)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"peft_config doesn't fit a {type(model).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # steps are lost on weights in half precision
    trained, total = adapted.get_nb_trainable_parameters()
    logger.info("The adapter and the head have %d of %d weights (%.1f %%).", trained, total, 100 * trained / total)
    return adapted
