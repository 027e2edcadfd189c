"""Write a saved classifier as ONNX or OpenVINO.

`cross-trainer export` is `export_folder`, so the messages name the options of the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cross_trainer.commands.score import load_encoder
from cross_trainer.data.tables import Name, check_output
from cross_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from cross_trainer.saved.export import Precision, Target


def export_folder(
    model: str,
    to: Target,
    precision: Precision = "fp32",
    *,
    output: Name | None = None,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write a saved classifier as ONNX or OpenVINO, and print how far its scores are from torch's.

    Args:
        model: A folder, or a name on the Hub.
        to: "onnx" or "openvino".
        precision: "fp32", "int8" or "bf16", see `CrossEncoder.export`.
        output: The folder to write to, with config and tokenizer. Default: the model's own.
        overwrite: Replace a file that was exported before.
        options: Options of `CrossEncoder`, such as `max_length` and `revision`.

    Raises:
        ConfigurationError: There is no such model, format or precision, or the file exists.
        MissingDependencyError: The extra `export` isn't installed.
        UnsupportedModelError: The model can't be exported.
    """
    from cross_trainer.saved.export import exported_file

    if output is None and not Path(model).is_dir():
        raise ConfigurationError(f"{model} is no folder. Name the folder to write to with -o.")
    folder = Path(model if output is None else output)
    check_output(folder / exported_file(to, precision), overwrite)
    typer.echo(str(load_encoder(model, device="cpu", **options).export(folder, to, precision)))
