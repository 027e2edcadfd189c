"""A Hugging Face Trainer for cross-encoders: models that read two texts at once and score them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cross_trainer.collator import PairCollator
    from cross_trainer.columns import Columns, InputExample
    from cross_trainer.cross_encoder import CrossEncoder
    from cross_trainer.errors import (
        ConfigurationError,
        CrossTrainerError,
        DataError,
        MissingDependencyError,
        UnsupportedModelError,
    )
    from cross_trainer.grouping import group_by_query
    from cross_trainer.losses import (
        ADRMSELoss,
        BinaryCrossEntropyLoss,
        CrossEntropyLoss,
        InfoNCELoss,
        KLDivergenceLoss,
        LambdaLoss,
        ListMLELoss,
        ListNetLoss,
        MarginMSELoss,
        MSELoss,
        RankNetLoss,
    )
    from cross_trainer.metrics import (
        binary_metrics,
        compare,
        correlation_metrics,
        from_evaluate,
        multiclass_metrics,
        multilabel_metrics,
        ranking_metrics,
    )
    from cross_trainer.mining import MinedNegatives, MiningStatistics, mine_hard_negatives
    from cross_trainer.padding_free import enable_padding_free
    from cross_trainer.trainer import CrossEncoderTrainer

__version__ = "0.1.0"

# Names load when they are first used (PEP 562): importing the package alone loads neither torch nor transformers.
_MODULES = {
    "collator": ["PairCollator"],
    "columns": ["Columns", "InputExample"],
    "errors": [
        "ConfigurationError",
        "CrossTrainerError",
        "DataError",
        "MissingDependencyError",
        "UnsupportedModelError",
    ],
    "grouping": ["group_by_query"],
    "losses": [
        "ADRMSELoss",
        "BinaryCrossEntropyLoss",
        "CrossEntropyLoss",
        "InfoNCELoss",
        "KLDivergenceLoss",
        "LambdaLoss",
        "ListMLELoss",
        "ListNetLoss",
        "MSELoss",
        "MarginMSELoss",
        "RankNetLoss",
    ],
    "metrics": [
        "binary_metrics",
        "compare",
        "correlation_metrics",
        "from_evaluate",
        "multiclass_metrics",
        "multilabel_metrics",
        "ranking_metrics",
    ],
    "mining": ["MinedNegatives", "MiningStatistics", "mine_hard_negatives"],
    "padding_free": ["enable_padding_free"],
    "trainer": ["CrossEncoderTrainer"],
    "cross_encoder": ["CrossEncoder"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ADRMSELoss",
    "BinaryCrossEntropyLoss",
    "Columns",
    "ConfigurationError",
    "CrossEncoder",
    "CrossEncoderTrainer",
    "CrossEntropyLoss",
    "CrossTrainerError",
    "DataError",
    "InfoNCELoss",
    "InputExample",
    "KLDivergenceLoss",
    "LambdaLoss",
    "ListMLELoss",
    "ListNetLoss",
    "MSELoss",
    "MarginMSELoss",
    "MinedNegatives",
    "MiningStatistics",
    "MissingDependencyError",
    "PairCollator",
    "RankNetLoss",
    "UnsupportedModelError",
    "binary_metrics",
    "compare",
    "correlation_metrics",
    "enable_padding_free",
    "from_evaluate",
    "group_by_query",
    "mine_hard_negatives",
    "multiclass_metrics",
    "multilabel_metrics",
    "ranking_metrics",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
