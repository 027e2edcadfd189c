"""Score a table of pairs of any size, so that a killed process goes on where it stopped and ends in the same bytes.

    score_file("pairs.csv", "scored.parquet", "output/quora", symmetric=True, device="cuda")

The whole table is checked before the model is loaded. Scores are kept a window of pairs at a time in the folder OUTPUT.partial, beside
a fingerprint of all that they depend on, and what is done under another fingerprint is never taken for this table's. Messages name the
options of the command line, as `cross-trainer score` is this function.

Shapes: P pairs, W pairs of a window, C columns of scores.
"""

from __future__ import annotations

import filecmp
import hashlib
import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cross_trainer
from cross_trainer.commands.partial import PartialScores
from cross_trainer.data.tables import Format, Found, Name, check_output, check_table, join_scores, read_rows, replacing
from cross_trainer.errors import ConfigurationError, CrossTrainerError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cross_trainer.scoring.cross_encoder import CrossEncoder

logger = logging.getLogger(__name__)

WINDOW = 4096  # pairs that are scored, and lost when the process is killed, together
MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.index.json",
    "pytorch_model*.bin",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.py",
)
"""What a model's scores depend on, of what may lie in its folder."""


def score_file(
    source: Name,
    output: Name,
    model: str,
    *,
    text_columns: Sequence[str] | None = None,
    score_column: str = "score",
    symmetric: bool = False,
    logits: bool = False,
    window: int = WINDOW,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write a table with its pairs' scores behind its own columns, or go on with it.

    Args:
        source: A csv, tsv, jsonl or parquet file, by its name.
        output: Likewise, in any of these formats.
        model: A name on the Hub or a folder.
        text_columns: The columns of the two texts. Default: the first two of text.
        score_column: The column to add; `score_column_<label>` for each label of a model with several.
        symmetric: Average the scores of (a, b) and (b, a).
        logits: Give raw logits, without the model's activation.
        window: W.
        overwrite: Replace `output`, and what is half done with other settings.
        options: Of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model can't be loaded, or something would be replaced unasked.
        DataError: A row can't be scored or written; the message names it. Or the table was changed meanwhile.
    """
    source, output = Path(source), Path(output)
    form, partial = Format.of(output), PartialScores(f"{output}.partial")
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigurationError(f"{output} is the input itself. Name another output.")
    if not partial.folder.exists():
        check_output(output, overwrite)
    digest = _sha256(source)
    found = check_table(source, form, text_columns)
    logger.info("%s: %d pairs of %s", source, found.rows, " and ".join(map(repr, found.texts)) or "no columns")
    if found.empty:
        logger.warning("%d of the texts are empty. They are scored as they are.", found.empty)
    encoder = load_model(model, **options)
    names = _score_names(encoder, score_column, found)
    settings = {
        "model": _model_fingerprint(encoder, model),
        "input": digest,
        "--text-columns": list(found.texts),
        "--symmetric": symmetric,
        "--logits": logits,
        "--window": window,
        "--quantize": options.get("quantize"),
        **_environment(encoder),
    }
    if partial.was_finished(settings) and output.exists():
        partial.remove()
        logger.info("%s is complete.", output)
        return
    windows = -(-found.rows // window)
    if partial.count(windows) < windows:
        check_output(output, overwrite)
    partial.begin(settings, overwrite)
    done = partial.count(windows)
    start = min(done * window, found.rows)
    if start:
        logger.info("Going on with row %d of %d.", start, found.rows)
    rows = itertools.islice(read_rows(source, found.texts), start, None)
    how = {"columns": found.texts, "symmetric": symmetric, "activation": "logits" if logits else None}
    _keep(score_windows(encoder, rows, found.rows, window, start, **how), partial, done)
    if _sha256(source) != digest:
        raise DataError(f"{source} was changed while it was being scored. Pass --overwrite to begin anew.")
    with replacing(output, partial.joined) as path:
        join_scores(source, path, form, found, names, partial.scores(windows))
        # The process may have been killed right after the output was put into its place: then it is equal.
        if output.exists() and not filecmp.cmp(path, output, shallow=False):
            check_output(output, overwrite)
    partial.finish()
    logger.info("Wrote %s.", output)


def _keep(parts: Iterable[NDArray[np.float32]], partial: PartialScores, first: int) -> None:
    """Keep each window's scores as soon as they are there."""
    import numpy as np

    broken = 0
    for index, scores in enumerate(parts, first):
        broken += int((~np.isfinite(scores)).any(axis=1).sum())
        partial.save(index, scores)
    if broken:
        logger.warning("%d scores are not finite. Another --dtype may help.", broken)


def score_windows(
    encoder: CrossEncoder, rows: Iterable[Any], total: int, window: int, start: int = 0, **options: Any
) -> Iterator[NDArray[np.float32]]:
    """Scores [W, C] of each window of a stream; `total` pairs, with the first `start` that were scored before, are the bar's end."""
    import numpy as np

    scores = encoder.predict_iter(rows, window, **options)
    with progress(total, start) as bar:
        while part := list(itertools.islice(scores, window)):
            bar.update(len(part))
            yield np.stack(part).reshape(-1, encoder.num_labels)


def progress(total: int, start: int = 0) -> Any:
    """A bar over pairs, for who watches a terminal."""
    from tqdm import tqdm

    # On a terminal that doesn't tell its size tqdm would draw nothing.
    width, height = shutil.get_terminal_size()
    return tqdm(total=total, initial=start, unit=" pairs", desc="Scoring", disable=None, ncols=width, nrows=height)


def load_model(name: str, *, device: str | None = None, **options: Any) -> CrossEncoder:
    """Load a saved classifier, by its name on the Hub or its folder, with `options` of `CrossEncoder`.

    Raises:
        ConfigurationError: There is no such model or device, or an option can't be followed.
    """
    import torch

    from cross_trainer.scoring.cross_encoder import CrossEncoder

    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ConfigurationError(f"The model {name!r} is a path, but there is no such folder.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"--device {device}: {str(error).splitlines()[0]}") from error
    try:
        return CrossEncoder(name, device=device, **options)
    except CrossTrainerError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The model {name!r} can't be loaded from a folder or from the Hub: {str(error).splitlines()[0]}"
        ) from error


def _score_names(encoder: CrossEncoder, column: str, found: Found) -> list[str]:
    """The columns of the scores, none of which the table has."""
    labels: Any = encoder.config.id2label
    names = [f"{column}_{labels[index]}" for index in range(encoder.num_labels)] if encoder.num_labels > 1 else [column]
    for name in names:
        if name in found.names:
            raise ConfigurationError(
                f"The input has a column {name!r} of its own. Name the scores with --score-column."
            )
    return names


# -- the fingerprint ---------------------------------------------------------------------------------------------------


def _environment(encoder: CrossEncoder) -> dict[str, Any]:
    """What scores depend on beside table, model and options, down to the last bit."""
    import tokenizers
    import torch
    import transformers

    return {
        "--max-length": encoder.max_length,
        "--max-tokens": encoder.max_tokens,
        "--dtype": str(encoder.model.dtype).removeprefix("torch."),
        "--device": encoder.device.type,
        "cross_trainer": cross_trainer.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _model_fingerprint(encoder: CrossEncoder, name: str) -> str:
    """The commit of a model on the Hub, or the hash of what lies in its folder."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(encoder.config, '_commit_hash', None)}"
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{path.name} {_sha256(path)}\n" for path in files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
