"""Score a table of pairs of any size. A killed process continues where it stopped, and ends with the same bytes.

    score_file("pairs.csv", "scored.parquet", "output/quora", symmetric=True, device="cuda")

The whole table is checked before the model is loaded. Scores are kept in the folder OUTPUT.partial, one window of pairs
at a time, with a fingerprint of everything that they depend on; scores with another fingerprint are never used.
`cross-trainer score` calls this function, so its messages name the options of the command line.

Shapes: P pairs, W pairs of a window, C columns of scores.
"""

from __future__ import annotations

import collections
import filecmp
import hashlib
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import cross_trainer
from cross_trainer.commands.partial import PartialScores
from cross_trainer.commands.processes import is_main, on_main, wait_for_all
from cross_trainer.data.columns import INSTRUCTION
from cross_trainer.data.tables import (
    Format,
    Found,
    Name,
    check_output,
    check_table,
    column_names,
    join_scores,
    read_rows,
    replacing,
)
from cross_trainer.disk import check_space, check_writable
from cross_trainer.errors import ConfigurationError, DataError
from cross_trainer.saved.folder import find_file, saved_template, saved_text_columns
from cross_trainer.saved.naming import naming

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cross_trainer.scoring.cross_encoder import CrossEncoder

logger = logging.getLogger(__name__)

WINDOW = 4096  # pairs that are scored together, and lost together when the process is killed
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
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
"""The files in a model's folder that its scores depend on."""


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
    """Write a table with the scores of its pairs after its own columns, or continue writing it.

    Args:
        source: A csv, tsv, jsonl or parquet file, recognised by its name.
        output: A file in any of these formats.
        model: A name on the Hub or a folder.
        text_columns: The columns of the two texts. Default: those that the model was trained on, else by their names.
        score_column: The column to add; `score_column_<label>` for each label of a model with several.
        symmetric: Average the scores of (a, b) and (b, a).
        logits: Write raw logits, without the model's activation.
        window: W.
        overwrite: Replace `output`, and a half-done output of other settings.
        options: Options of `CrossEncoder`, such as `device` and `max_length`.

    Raises:
        ConfigurationError: The model can't be loaded, or a file would be replaced without `overwrite`.
        DataError: A row can't be scored or written; the message names its line. Or the table was changed meanwhile.
    """
    source, output = Path(source), Path(output)
    form, partial = Format.of(output), PartialScores(f"{output}.partial")
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigurationError(f"{output} is the input itself. Name another output.")

    def check() -> tuple[str, Found]:
        if not partial.folder.exists():
            check_output(output, overwrite)
        check_writable(output)
        check_space(output, 0 if form.compressed else source.stat().st_size // 2, f"What is written of {source}")
        digest = sha256(source)
        trained_on = None if text_columns else trained_columns(model, **options)
        instructed = INSTRUCTION in column_names(source) and takes_instruction(model, **options)
        found = check_table(source, form, text_columns, trained_on, instructed=instructed)
        logger.info("%s: %d pairs of %s", source, found.rows, " and ".join(map(repr, found.texts)) or "no columns")
        if found.empty:
            logger.warning("%d of the texts are empty. They are scored as they are.", found.empty)
        return digest, found

    digest, found = on_main(check)
    encoder = load_encoder(model, **options)
    names = _score_names(encoder, score_column, found)
    settings = {
        "input": digest,
        "--text-columns": list(found.texts),
        "--symmetric": symmetric,
        "--logits": logits,
        "--window": window,
        **fingerprint(encoder, model, options),
    }
    if not begin(partial, settings, output, -(-found.rows // window), overwrite):
        return
    score_missing(
        encoder,
        read_rows(source, found.texts),
        found.rows,
        partial,
        window,
        activation="logits" if logits else None,
        symmetric=symmetric,
        columns=found.texts,
    )

    def write(path: Path) -> None:
        if sha256(source) != digest:
            raise DataError(f"{source} was changed while it was being scored. Pass --overwrite to begin again.")
        join_scores(source, path, form, found, names, partial.scores(-(-found.rows // window)))

    finish(partial, output, overwrite, write)


# -- in windows, which any process may score, now or after it was killed -----------------------------------------------


def begin(
    partial: PartialScores, settings: Mapping[str, Any], output: Path, windows: int, overwrite: bool = False
) -> bool:
    """Begin an output or continue with it; False if it is complete.

    Args:
        partial: Where its scores are kept until it is written.
        settings: Everything that they depend on, as JSON.
        output: The file.
        windows: How many there are.
        overwrite: Replace `output`, and a half-done output of other settings.

    Raises:
        ConfigurationError: `output` is there, or half of one with other settings.
    """

    def decide() -> bool:
        if partial.was_finished(settings) and output.exists():
            partial.remove()
            logger.info("%s is complete.", output)
            return False
        if partial.missing(windows):
            check_output(output, overwrite)
        partial.begin(settings, overwrite)
        return True

    return on_main(decide)


def score_missing(
    encoder: CrossEncoder,
    rows: Iterable[Any],
    total: int,
    partial: PartialScores,
    window: int,
    read: Callable[[Any], Any] | None = None,
    **how: Any,
) -> None:
    """Score the windows that aren't done, each process its share, and keep each as soon as it is computed.

    Args:
        encoder: The model.
        rows: All pairs, in order.
        total: P.
        partial: Where the scores are kept.
        window: W.
        read: Makes a pair of a row; called for those alone that are scored.
        how: Further arguments of `CrossEncoder.score_windows`.
    """
    from cross_trainer.scoring.engine import process_of_all

    count = -(-total // window)
    left = on_main(lambda: partial.missing(count))
    if len(left) < count:
        logger.info("Continuing: %d of %d windows of %d pairs are done.", count - len(left), count, window)
    process, processes = process_of_all()
    share = left[process::processes]
    mine, source = set(share), iter(rows)

    def chosen() -> Iterator[Any]:
        for index in range(max(share, default=-1) + 1):
            part = itertools.islice(source, window)
            if index in mine:
                yield from part if read is None else map(read, part)
            else:
                collections.deque(part, maxlen=0)  # passed over

    scores = show_progress(encoder.score_windows(chosen(), window, **how), min(total, len(share) * window))
    for index, found in zip(share, scores, strict=True):
        partial.save(index, found)


def finish(partial: PartialScores, output: Path, overwrite: bool, write: Callable[[Path], None]) -> None:
    """Write an output once all processes have scored their share, and remove what was kept for it.

    Args:
        partial: Where its scores are kept.
        output: The file.
        overwrite: Replace it.
        write: Writes it under another name.

    Raises:
        ConfigurationError: Another file has taken its place meanwhile.
    """
    wait_for_all()

    def write_once() -> None:
        with replacing(output, partial.joined) as path:
            write(path)
            # The process may have been killed right after it had put the output in its place: then the two are equal.
            if output.exists() and not filecmp.cmp(path, output, shallow=False):
                check_output(output, overwrite)
        partial.finish()
        logger.info("Wrote %s.", output)

    on_main(write_once)


def show_progress(windows: Iterable[NDArray[np.float32]], total: int | None = None) -> Iterator[NDArray[np.float32]]:
    """Pass windows of scores [W, C] on, and show a progress bar on a terminal.

    Args:
        windows: The scores.
        total: How many pairs there are to score, if it is known.
    """
    from tqdm import tqdm

    # tqdm would draw nothing on a terminal of unknown size.
    width, height = shutil.get_terminal_size()
    shown = None if is_main() else True
    with tqdm(total=total, unit=" pairs", desc="Scoring", disable=shown, ncols=width, nrows=height) as bar:
        for window in windows:
            bar.update(len(window))
            yield window


def load_encoder(name: str, *, device: str | None = None, **options: Any) -> CrossEncoder:
    """Load a saved classifier from the Hub or a folder, with `options` of `CrossEncoder`.

    Raises:
        ConfigurationError: There is no such model or device, or an option isn't possible.
    """
    import torch

    from cross_trainer.scoring.cross_encoder import CrossEncoder

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"--device {device}: {str(error).splitlines()[0]}") from error
    with naming(name):
        return CrossEncoder(name, device=device, **options)


def trained_columns(name: str, *, revision: str | None = None, **_options: Any) -> tuple[str, str] | None:
    """The two text columns that a saved model was trained on, if its config has them; arguments as in `load_encoder`.

    Raises:
        ConfigurationError: There is no such model.
    """
    from cross_trainer.saved.loading import read_settings

    with naming(name):
        return saved_text_columns(SimpleNamespace(**read_settings(name, {"revision": revision})))


def takes_instruction(
    name: str, *, template: Any = None, tokens: Any = None, revision: str | None = None, **_options: Any
) -> bool:
    """Whether a model reads pairs in a template with an instruction; arguments as in `load_encoder`.

    Raises:
        ConfigurationError: There is no such model, or the template isn't one.
    """
    from cross_trainer.data.templates import Template
    from cross_trainer.saved.loading import read_model

    if template is None:
        with naming(name):
            config, _ = read_model(name, {"revision": revision}, tokens=tokens)
        template = saved_template(config)
    return template is not None and Template.of(template).takes_instruction


def _score_names(encoder: CrossEncoder, column: str, found: Found) -> list[str]:
    """The columns of the scores, which the table must not have."""
    from cross_trainer.scoring.batches import score_names

    names = score_names(encoder, column)
    for name in names:
        if name in found.names:
            raise ConfigurationError(
                f"The input has a column {name!r} of its own. Name the scores with --score-column."
            )
    return names


# -- the fingerprint ---------------------------------------------------------------------------------------------------


def fingerprint(encoder: CrossEncoder, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that scores depend on beside the texts, down to the last bit.

    Args:
        encoder: The model.
        model: Its name or folder.
        options: The options that it was loaded with.
    """
    import tokenizers
    import torch
    import transformers

    from cross_trainer.saved.rerankers import saved_answers

    runtime = {"onnx": "onnxruntime"}.get(encoder.backend, encoder.backend)
    return {
        "model": _model_fingerprint(encoder, model, options.get("revision")),
        "--quantize": options.get("quantize"),
        "--max-length": encoder.max_length,
        "--max-query-length": encoder.max_query_length,
        "--template": None if encoder.template is None else encoder.template.to_dict(),
        "--tokens": list(saved_answers(encoder.config)),
        "--max-tokens": encoder.max_tokens,
        "--dtype": str(encoder.model.dtype).removeprefix("torch."),
        "--device": encoder.device.type,
        "--backend": f"{runtime} {version(runtime)}",
        "cross_trainer": cross_trainer.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _model_fingerprint(encoder: CrossEncoder, name: str, revision: str | None) -> str:
    """The commit of a model on the Hub, or the hash of the files in its folder; an adapter's, those of its base too."""
    from cross_trainer.saved.adapters import is_adapted

    if not is_adapted(encoder.model):
        return _fingerprint(name, revision, encoder.exported_files)
    digest = hashlib.sha256()
    for weight in encoder.model.parameters():
        if weight.requires_grad:
            digest.update(weight.detach().cpu().float().numpy().tobytes())
    settings = next(iter(cast("Any", encoder.model).peft_config.values()))
    base = _fingerprint(str(encoder.config.name_or_path), settings.revision)
    return f"{_fingerprint(name, revision)} with {digest.hexdigest()} over {base}"


def _fingerprint(name: str, revision: str | None, exported: Sequence[Path] = ()) -> str:
    folder = Path(name)
    if not folder.is_dir():
        described = ("config.json", "adapter_config.json")
        found = (find_file(name, file, {"revision": revision}) for file in described)
        commit = next(path.parent.name for path in found if path is not None)  # the folder of a snapshot
        return f"{name}@{commit}"
    files = [*sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}), *exported]
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
