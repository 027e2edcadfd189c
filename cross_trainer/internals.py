"""Every private name of torch, transformers and accelerate that this package reads, in one place, each with its reason.

A release of theirs may change any of them without notice: when one does, this file is the only one to mend.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Sampler


def attention_name(config: Any) -> str:
    """The attention that a config asks for; `attn_implementation` can be set under a public name but not read."""
    name: str = config._attn_implementation
    return name


def process_state() -> Any:
    """Accelerate's `PartialState`, which knows all processes of a run.

    Where there is no accelerator it finds only itself unless told to use CPUs, in every process.
    """
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    return PartialState(cpu=not torch.accelerator.is_available())


def first_to_say(key: str, value: str) -> str:
    """What the first process of a run to come here has said under a key, which all later ones get. Nobody waits.

    Collectives wait for every process, and a model may be loaded by some alone; the store that all processes know each
    other by has no public name.
    """
    from torch import distributed

    process_state()  # the processes know each other from here on
    if not distributed.is_available() or not distributed.is_initialized():
        return value
    store = distributed.distributed_c10d._get_default_store()
    return str(store.compare_set(f"cross_trainer {key}", "", value).decode())


@contextlib.contextmanager
def replaced(target: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object with other values for a while."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


class AttentionConfig:
    """A config as an attention module sees it: it asks for another attention, and all else is the wrapped config's.

    Attention modules look up `config._attn_implementation` on every call, so exchanging what they read redirects them
    without changing the model's own config, which would be saved with the model.
    """

    def __init__(self, wrapped: Any, name: str) -> None:
        self.wrapped = wrapped
        self._attn_implementation = name

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet, while being copied
            raise AttributeError(name)
        return getattr(self.wrapped, name)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps a module or its call; torch has no public question for it."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def has_hooks(module: nn.Module) -> bool:
    """Whether forward hooks are registered on a module; torch has no public question for it."""
    return count_hooks(module) > 0


def count_hooks(module: nn.Module) -> int:
    """How many forward hooks are registered on a module; torch has no public question for it."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Whether hooks are registered that see a tensor's gradient, or change it; torch has no public question for it."""
    return bool(tensor._backward_hooks)


def softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient before a softmax over the last dimension, in one pass; torch has no public function for it."""
    import torch

    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def multiply_int8(left: Tensor, right: Tensor) -> Tensor:
    """[M, K] times [K, N], both int8, as int32; the public `torch.mm` adds up in int8 and overflows."""
    import torch

    return torch._int_mm(left, right)


def tensor_state(tensor: Tensor) -> tuple[int, int]:
    """Changes whenever a tensor gets other memory or is written to in place, which only the private counter shows."""
    return tensor._version, tensor.data_ptr()


def changes(tensor: Tensor) -> int:
    """How often a tensor was written to in place; one made in inference mode doesn't count, and only the private
    counter shows it.
    """
    return 0 if tensor.is_inference() else tensor._version


def mark_unprepared(model: nn.Module) -> None:
    """Let accelerate prepare a model again, for training after an evaluation; it goes by this mark alone."""
    if getattr(model, "_is_accelerate_prepared", False):
        model._is_accelerate_prepared = False  # type: ignore[assignment]


def whole_layers(model: Any) -> set[str]:
    """The names of classes that FSDP keeps in one part each; transformers tells them under a private name alone."""
    return set(getattr(model, "_no_split_modules", None) or ())


def keep_weight_conversions(source: nn.Module, target: nn.Module) -> None:
    """Let a model that took over another one's layers be saved as that one would be; transformers keeps in private how
    it renamed and merged weights while loading them, and undoes it by that alone.
    """
    conversions = getattr(source, "_weight_conversions", None)
    if conversions is not None:
        target._weight_conversions = conversions


if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # importing it takes seconds, and most of this file is needed without it


class TrainerSeams(_Trainer):
    """Methods of `transformers.Trainer` without a public name, each with what it lets a subclass decide.

    A class derives from it and from `Trainer`.
    """

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        """Training, evaluation and prediction load rows here, and their public methods can't exchange them."""
        rows = self.rows_to_load(dataset, batch_size, is_training)
        if not hasattr(rows, "__getitem__"):
            sampler_fn = None
        with self.loading(rows, is_training):
            loader = super()._get_dataloader(rows, description, batch_size, sampler_fn, is_training, dataloader_key)
        self.loader_made(loader, rows, is_training)
        return loader

    def rows_to_load(self, dataset: Any, batch_size: int, is_training: bool) -> Any:  # noqa: ARG002
        """The rows to load for a data set."""
        return dataset

    def loading(self, rows: Any, is_training: bool) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """The context in which a dataloader over `rows` is made."""
        return contextlib.nullcontext()

    def loader_made(self, loader: DataLoader[Any], rows: Any, is_training: bool) -> None:
        """Called with every dataloader over `rows` once accelerate has prepared it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """No argument of the Trainer sets the order of training."""
        return self.train_sampler(train_dataset)

    def train_sampler(self, dataset: Any) -> Sampler[int] | None:
        """The order of training."""
        return super()._get_train_sampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """The Trainer's follows the strategy of training, which may shuffle predictions."""
        return self.eval_sampler(eval_dataset)

    def eval_sampler(self, dataset: Any) -> Sampler[int] | None:
        """The order of an evaluation."""
        return super()._get_eval_sampler(dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The Trainer counts labels and gathers their number over processes; a loss may count something else."""
        return super()._get_num_items_in_batch(self.items_to_count(batch_samples), device)

    def items_to_count(self, batches: list[Any]) -> list[Any]:
        """Batches whose `labels` are as many as the loss has items."""
        return batches

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The Trainer moves batches to the device one tensor after the other, and waits for each."""
        return super()._prepare_inputs(self.moved(inputs))

    def moved(self, inputs: Any) -> Any:
        """A batch on the device."""
        return inputs

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """The last moment before the model is wrapped, also where `model_init` has just made it."""
        self.before_wrapping()
        return super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Callbacks aren't told which pass over the data begins, and only some dataloaders pass it on to the rows."""
        self.pass_begins(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def pass_begins(self, epoch: int) -> None:
        """Called before each pass over the training data, counted from 0."""

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Where to resume follows from the number of steps in a pass, which the Trainer doesn't know of a stream."""
        return self.place_to_resume(*super()._init_training_state(*args, **kwargs))

    def place_to_resume(self, epoch: int, batches: int) -> tuple[int, int]:
        """The pass to go on with, and how many of its batches have been trained on."""
        return epoch, batches

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The only moment between backward and the optimiser's step that knows the gradient's norm."""
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.gradient_known(norm)
        return norm

    def gradient_known(self, norm: Any) -> None:
        """Called with the norm of each update's gradient, a number or a tensor, before it is applied."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """`save_model` and checkpoints hand the weights here, those of all processes where each held a part."""
        with self.saving(output_dir, state_dict):
            super()._save(output_dir, state_dict)

    def saving(self, folder: str | None, state: Any) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """The context in which the model is written to a folder; `state` holds all weights, or is None."""
        return contextlib.nullcontext()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Callbacks are told of a checkpoint once it is there, and not before."""
        from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self.checkpointing(os.path.join(self._get_output_dir(trial=trial), folder)):
            super()._save_checkpoint(model, trial)

    def checkpointing(self, folder: str) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """The context in which a checkpoint is written to a folder."""
        return contextlib.nullcontext()

    def _save_rng_state(self, output_dir: str) -> None:
        """What each process writes last: the main process goes on to `trainer_state.json`, which says all is there."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The Trainer uploads checkpoints without a public hook, and doesn't say where that fails in the background."""
        self.push_checkpoint(checkpoint_folder, super()._push_from_checkpoint)

    def push_checkpoint(self, folder: str, push: Callable[[str], None]) -> None:
        """Called with each checkpoint to upload; `push` starts the upload of it and of the output folder."""
        push(folder)

    def before_wrapping(self) -> None:
        """Called before each training with `self.model` as it will be wrapped."""
