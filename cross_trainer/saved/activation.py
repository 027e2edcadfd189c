"""The activation that makes scores of a model's logits, as its config names it: a class of `torch.nn.modules`."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from cross_trainer.saved.folder import (
    ACTIVATION_CLASSES,
    activation_path,
    describe_scores,
    name_activation,
)

logger = logging.getLogger(__name__)


Activation: TypeAlias = "Callable[[Tensor], Tensor]"


def saved_activation(config: Any) -> Activation:
    """What turns a saved model's logits into scores, as `activation_path` finds it.

    Only classes of `torch.nn.modules` are followed, so that no config can have other code run.

    Args:
        config: The model's config.

    Returns:
        A callable on logits [P, C].
    """
    path = activation_path(config)
    activation = torch_module(path)
    if activation is not None:
        return activation
    default: nn.Module = nn.Sigmoid() if config.num_labels == 1 else nn.Identity()
    logger.warning(
        "The config's activation %r is no class of torch.nn.modules and is not loaded; %s is used. "
        "Pass activation=... for another one.",
        path,
        default,
    )
    return default


def describe_activation(config: Any, activation: Activation) -> None:
    """Write an activation into a model's config, if its class path is enough to make it again; warn if it isn't."""
    path = f"{type(activation).__module__}.{type(activation).__qualname__}"
    again = torch_module(path)
    settings = [{**vars(module), "dim": -1} for module in (again, activation) if isinstance(module, nn.Module)]
    if again is None or list(again.parameters()) or str(settings[0]) != str(settings[1]):
        logger.warning(
            "The activation %s can't be saved with the model, whose config keeps %s. Pass activation=... again.",
            activation,
            activation_path(config),
        )
        return
    name = next((name for name, known in ACTIVATION_CLASSES.items() if known == path), None)
    default = "sigmoid" if config.num_labels == 1 else "identity"
    if name is None or (name == default and config.problem_type is None):  # nothing was said, and it may be trained yet
        name_activation(config, path)
    else:
        describe_scores(config, name)


def torch_module(path: Any) -> nn.Module | None:
    """An instance of the named class of torch.nn.modules, over the last dimension where it asks for one; else None."""
    home, _, name = str(path).rpartition(".")
    if home == "torch.nn":
        found = getattr(nn, name, None)
    elif home.startswith("torch.nn.modules."):
        try:
            found = getattr(importlib.import_module(home), name, None)
        except ImportError:
            found = None
    else:
        found = None
    if not (
        inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__.startswith("torch.nn.modules.")
    ):
        return None
    return found(dim=-1) if "dim" in inspect.signature(found).parameters else found()
