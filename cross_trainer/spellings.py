"""Arguments as sentence-transformers' users type: ours by other names, and those that are refused, with the way here.

@spelled(REFUSED["predict"])
def predict(self, pairs, activation=None, **_others: Unpack[ScoringSpellings]): ...

model.predict(sentences=pairs, activation_fct=torch.sigmoid)     # pairs=pairs, activation=torch.sigmoid
model.predict(pairs, num_workers=2)                              # ConfigurationError: leave it out, because ...
model.predict(pairs, number_workers=2)                           # TypeError, as everywhere in Python
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, cast

from cross_trainer.errors import ConfigurationError, short

Function = TypeVar("Function", bound=Callable[..., Any])

OURS = {
    "model_name": "model_name_or_path",
    "activation_fn": "activation",
    "activation_fct": "activation",
    "default_activation_function": "activation",
    "cache_folder": "cache_dir",
    "automodel_args": "model_kwargs",
    "processor_kwargs": "tokenizer_kwargs",
    "tokenizer_args": "tokenizer_kwargs",
    "config_args": "config_kwargs",
    "inputs": "pairs",
    "sentences": "pairs",
    "path": "folder",
    "tokenizer": "processing_class",
}
"""Names of sentence-transformers 2 to 6, and ours for the same argument."""


class LoadingSpellings(TypedDict, total=False):
    """What `CrossEncoder` also takes, see `OURS`."""

    activation_fn: Callable[[Any], Any] | None
    default_activation_function: Callable[[Any], Any] | None
    cache_folder: Any
    automodel_args: Mapping[str, Any] | None
    processor_kwargs: Mapping[str, Any] | None
    tokenizer_args: Mapping[str, Any] | None
    config_args: Mapping[str, Any] | None


class ScoringSpellings(TypedDict, total=False):
    """What `predict` and `rank` also take, see `OURS`."""

    activation_fn: Callable[[Any], Any] | None
    activation_fct: Callable[[Any], Any] | None


class TrainerSpellings(TypedDict, total=False):
    """What `CrossEncoderTrainer` also takes, see `OURS`."""

    tokenizer: Any


@dataclass(frozen=True)
class Refused:
    """An argument that isn't taken, unless its value asks for nothing or for what is done anyway.

    Attributes:
        advice: What to do instead.
        harmless: Such values.
    """

    advice: str
    harmless: tuple[Any, ...] = (None,)

    def check(self, name: str, value: Any) -> None:
        """Refuse a value.

        Raises:
            ConfigurationError: It asks for something.
        """
        if not any(value is each or (type(value) is type(each) and value == each) for each in self.harmless):
            raise ConfigurationError(f"{name}={short(value)} isn't taken here: {self.advice}")


_DEVICES = Refused(
    "for several devices run one process each, with accelerate launch, and let all of them call "
    "predict(distributed=True)."
)
_WORKERS = Refused("a thread tokenises ahead of the model. Leave it out.", (None, 0))
_CARD = (
    "the model card is written from what is known. Edit README.md in the folder: later saves keep that. Leave it out."
)
_SAVING = {
    "train_datasets": Refused(_CARD),
    "safe_serialization": Refused("weights are saved as safetensors, never as pickles. Leave it out.", (None, True)),
}

REFUSED: dict[str, dict[str, Refused]] = {
    "CrossEncoder": {
        "modules": Refused(
            "a model is one sequence classifier. Load it with AutoModelForSequenceClassification and pass it together "
            "with its tokenizer: CrossEncoder(model, tokenizer=tokenizer)."
        ),
        "model_card_data": Refused(_CARD),
        "keep_in_fp32_modules": Refused(
            'the classification head computes in float32 whatever the dtype is; dtype="float32" does so for all '
            "modules. Leave it out.",
            (None, []),
        ),
        "classifier_dropout": Refused("pass config_kwargs={'classifier_dropout': ...}."),
    },
    "predict": {
        "num_workers": _WORKERS,
        "pool": _DEVICES,
        "chunk_size": _DEVICES,
        "processing_kwargs": Refused("pass max_length, truncation or tokenizer_kwargs to CrossEncoder."),
    },
    "rank": {
        "num_workers": _WORKERS,
        "pool": _DEVICES,
        "chunk_size": _DEVICES,
        "apply_softmax": Refused(
            "rank() is for models with one label, which have no classes. Leave it out.", (None, False)
        ),
        "convert_to_numpy": Refused("rank() returns plain numbers. Leave it out.", (None, True, False)),
        "convert_to_tensor": Refused("rank() returns plain numbers. Leave it out.", (None, False)),
    },
    "save_pretrained": {
        **_SAVING,
        "model_name": Refused(_CARD),
    },
    "push_to_hub": {
        **_SAVING,
        "local_model_path": Refused(
            "upload a folder with huggingface_hub.upload_folder(repo_id=..., folder_path=...)."
        ),
        "replace_model_card": Refused(
            "what somebody has edited in the repository's card stays. Remove README.md there to have it written anew.",
            (None, False),
        ),
        "tags": Refused(_CARD),
        "max_shard_size": Refused("save with model.model.save_pretrained(folder, max_shard_size=...) and upload that."),
        "use_temp_dir": Refused("a temporary folder is used, and gone afterwards. Leave it out.", (None, True)),
    },
    "fit": {},
    "CrossEncoderTrainer": {
        "loss": Refused(
            "pass compute_loss_func=..., a loss of cross_trainer without the model, such as BinaryCrossEntropyLoss(), "
            "or leave it out: the loss follows from the labels. For several data sets it may be {name: loss}."
        ),
        "evaluator": Refused(
            "pass compute_metrics=..., such as binary_metrics(), or leave it out: with an eval_dataset, metrics follow "
            "from the labels. After training, evaluator(CrossEncoder(folder)) works, too."
        ),
    },
}
"""Names of sentence-transformers that aren't taken, by the method that refuses them."""


def spelled(refused: Mapping[str, Refused]) -> Callable[[Function], Function]:
    """Let a function take its parameters by the names in `OURS` as well, and say why others aren't taken.

    >>> @spelled({"num_workers": Refused("leave it out.", (None, 0))})
    ... def predict(pairs, activation=None):
    ...     return pairs, activation
    >>> predict(sentences=["a"], activation_fct="sigmoid", num_workers=0)
    (['a'], 'sigmoid')
    >>> predict(["a"], num_workers=2)
    Traceback (most recent call last):
    cross_trainer.errors.ConfigurationError: num_workers=2 isn't taken here: leave it out.

    Args:
        refused: What isn't taken, by name.

    Raises:
        ConfigurationError: An argument is refused, or given under two names; raised by the function.
        TypeError: An argument has a name that nobody knows; raised by the function.
    """

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        own = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            for name in [name for name in named if name not in own]:
                value = named.pop(name)
                ours = OURS.get(name)
                if ours in own:
                    if ours in named:
                        raise ConfigurationError(f"{name} is another name of {ours}: give one of them.")
                    named[ours] = value
                elif name in refused:
                    refused[name].check(name, value)
                else:
                    raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {name!r}")
            return function(*args, **named)

        return cast("Function", call)

    return decorate


def check_own_arguments(model: Any, args: Any, data_collator: Any) -> None:
    """Check that a trainer was given none of sentence-transformers' objects whose settings it wouldn't follow.

    Args:
        model: A cross-encoder of either package holds the classifier, and isn't one.
        args: Those of sentence-transformers turn metrics off, and have fields that its trainer alone reads.
        data_collator: It comes where other trainers take the training data.

    Raises:
        ConfigurationError: It was.
    """
    if hasattr(model, "predict") and hasattr(model, "rank") and hasattr(model, "tokenizer"):
        raise ConfigurationError(
            f"model is a {type(model).__name__}: pass the classifier in it, model=encoder.model, and "
            "processing_class=encoder.tokenizer, or its name or folder."
        )
    if data_collator is not None and not callable(data_collator):
        raise ConfigurationError(
            f"data_collator={short(data_collator)} can't be called. As in transformers.Trainer, the third argument is "
            "the collator: give the data by its name, train_dataset=..."
        )
    if any(each.__module__.startswith("sentence_transformers.") for each in type(args).__mro__):
        raise ConfigurationError(
            f"args are {type(args).__name__}, which turn metrics off and have fields that nothing here reads, such as "
            "batch_sampler and prompts. Give transformers.TrainingArguments with the other arguments, and "
            "CrossEncoderTrainer(mixing=...) for multi_dataset_batch_sampler."
        )
