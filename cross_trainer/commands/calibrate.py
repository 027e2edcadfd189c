"""Calibrate a saved model on labelled data, and save it.

    calibrate_model("output/quora", "held_out.csv", "output/calibrated", threshold="f1")

`cross-trainer calibrate` is `calibrate_model`, so the messages name the options of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cross_trainer.commands.arguments import name_columns
from cross_trainer.commands.score import load_encoder, trained_columns
from cross_trainer.commands.train import check_columns
from cross_trainer.data.splits import load_split
from cross_trainer.disk import check_space, check_writable
from cross_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from cross_trainer.saved.calibration import Calibration


def calibrate_model(
    model: str,
    dataset: str,
    output: Path,
    split: str = "validation",
    dataset_config: str | None = None,
    *,
    threshold: str | None = None,
    relevance_threshold: float | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    confidence: float = 0.95,
    overwrite: bool = False,
    batch_size: int = 64,
    **options: Any,
) -> None:
    """Save a model whose probabilities come true as often as they say, and print its figures before and after.

    Args:
        model: A saved classifier: a name on the Hub or a folder.
        dataset: A Hub id, a folder of splits or a file, with labels, held out from training.
        output: The folder to save to.
        split: The split to calibrate on. A file without a column `split` is read whole.
        dataset_config: The configuration of a data set on the Hub.
        threshold: As for `CrossEncoder.calibrate`.
        relevance_threshold: As for `CrossEncoder.calibrate`.
        text_columns: The columns of the two texts. Default: by their names and types.
        label_column: The column of the label.
        confidence: The level of the figures' intervals.
        overwrite: Write into `output` even if it holds something.
        batch_size: Pairs that are scored together at most.
        options: Options of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model or the data set isn't there, `output` isn't empty, or an option can't be followed.
        UnsupportedModelError: The model's logits don't follow from a last linear layer.
        DataError: A row can't be calibrated on, or a notable share was trained on; the message names it.
    """
    from cross_trainer.saved.adapters import size_of

    if not overwrite and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} is there and not empty. Name another folder, or pass --overwrite.")
    check_writable(output, folder=True)
    if options.get("quantize") is not None:
        raise ConfigurationError(f"--quantize {options['quantize']}: calibrate the model's own weights.")
    if options.get("dtype") == "auto":
        raise ConfigurationError("--dtype auto: what is saved shall not depend on this machine. Name the precision.")
    columns = name_columns(text_columns, label_column)
    rows = load_split(dataset, split, dataset_config, columns)
    check_columns(dataset, rows, columns, trained_on=trained_columns(model, **options))
    encoder = load_encoder(model, **options)
    check_space(output, size_of(encoder.model), "The calibrated model")
    found = encoder.calibrate(
        rows,
        threshold,
        columns=columns,
        relevance_threshold=relevance_threshold,
        confidence=confidence,
        batch_size=batch_size,
    )
    typer.echo("\n".join(_table(found, confidence)))
    encoder.save_pretrained(output)
    typer.echo(f"{found.rows} pairs, on which it was fitted: measure it on others. Saved in {output}")


def _table(found: Calibration, confidence: float) -> list[str]:
    """What was done, and a line for each figure, with its interval, before and after."""
    stages: dict[str, Mapping[str, float]] = {"before": found.before, "after": found.after}
    if found.calibrated != found.after:
        stages = {"before": found.before, "calibrated": found.calibrated, "0.5 moved": found.after}
    width = 28
    lines = [repr(found), f"{'':<20}" + "".join(f"{stage:<{width}}" for stage in stages)]
    names = [name for name in found.before if not name.endswith(("_low", "_high"))]
    for name in names:
        values = [
            f"{values[name]:.4f} [{values[f'{name}_low']:.4f}, {values[f'{name}_high']:.4f}]"
            for values in stages.values()
        ]
        lines.append(f"{name:<20}" + "".join(f"{value:<{width}}" for value in values))
    return [*(line.rstrip() for line in lines), f"[{100 * confidence:g} % intervals]"]
