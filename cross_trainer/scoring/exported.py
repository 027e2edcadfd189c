"""Exported models: written, compared with torch, and run by onnxruntime or OpenVINO behind the scoring engine.

    CrossEncoder("output/quora").export("output/quora", to="openvino", precision="int8")
    CrossEncoder("output/quora", backend="openvino", file_name="openvino_model_qint8_quantized.xml")

Shapes: P pairs, L tokens of a padded row, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cross_trainer.data.pairs import Pair, encode_pairs, pad_pairs
from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.execution.view import scoring_view, skip_unread_tokens
from cross_trainer.saved.activation import Activation
from cross_trainer.saved.export import (
    EXPORTED,
    PACKAGES,
    PRECISION_HINT,
    Precision,
    Target,
    beside,
    exported_file,
    find_exported,
    first_line,
    require_packages,
    write_graph,
)
from cross_trainer.saved.loading import Loaded, load_structure
from cross_trainer.scoring.engine import ScoringEngine, identity

Backend: TypeAlias = Literal["torch", "onnx", "openvino"]

TOLERANCE = 1e-3
"""How far float32 logits may be from torch's, as a share of the largest one, or absolutely where that is below 1."""

LONGEST_CHECK = 2048
"""Tokens of the longest pair that an export is checked with, if the model takes that many."""

QUESTIONS = (
    "how do i reset my password",
    "What is the capital of France?",
    "Is it safe to eat raw eggs while pregnant?",
    "A man is playing a guitar on the street.",
    "cheap flights from Berlin to Lisbon in March",
    "Why does bread dough have to rest before it is baked?",
    "Two dogs run across a field.",
    "which python version added dataclasses",
)
ANSWERS = (
    "Open the settings, choose 'Account', and click on 'Forgot password'. You will get a link by e-mail.",
    "Paris has been the capital of France since 987, with short interruptions.",
    "Raw eggs can carry salmonella, so doctors advise against them during pregnancy.",
    "Somebody makes music outdoors.",
    "Direct flights to Lisbon start at 49 euros if you book six weeks ahead and travel on a Tuesday or a Wednesday.",
    "While dough rests, yeast turns sugar into gas and gluten relaxes, which gives bread both its crumb and its taste.",
    "The cat sleeps.",
    "Dataclasses came with Python 3.7, in June 2018; before that, people used namedtuple or attrs.",
)


Opened: TypeAlias = "tuple[Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]], list[str]]"
"""How to run a graph, and the names of its inputs."""


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass
class ExportedModel:
    """An exported classifier, called as the classifier itself is: batches of tensors to logits [P, C] in float32.

    It opens its file when it is first called, so that a copy in another process opens its own.

    Args:
        path: The file.
        backend: "onnx" or "openvino".
    """

    path: Path
    backend: Target
    _opened: Opened | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the open file."""
        return {**self.__dict__, "_opened": None}

    def __call__(self, **batch: Tensor) -> Any:
        """Logits of a batch, as transformers returns them.

        Raises:
            ConfigurationError: The graph reads what the tokenizer doesn't give.
            UnsupportedModelError: The backend can't open or run it.
        """
        from transformers.modeling_outputs import SequenceClassifierOutput

        run, inputs = self._open()
        missing = [name for name in inputs if name not in batch]
        if missing:
            raise ConfigurationError(
                f"{self.path.name} reads {missing[0]!r}, but the tokenizer gives {list(batch)}. Export the model again."
            )
        with self._naming_errors():
            logits = run({name: batch[name].numpy() for name in inputs})
        return SequenceClassifierOutput(logits=torch.from_numpy(np.array(logits, dtype=np.float32)))

    def _open(self) -> Opened:
        if self._opened is None:
            with self._naming_errors():
                self._opened = (_open_onnx if self.backend == "onnx" else _open_openvino)(self.path)
        return self._opened

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's own have no other parent
            raise UnsupportedModelError(
                f"{self.path.name} fails in {self.backend}: {first_line(error)} Score with torch instead."
            ) from error

    @property
    def files(self) -> list[Path]:
        """The graph, and the files of its weights."""
        return [self.path, *(path for path in beside(self.path, self.backend) if path.exists())]

    def check_outputs(self, num_labels: int) -> None:
        """Open the file and score one token.

        Raises:
            ConfigurationError: It has another number of labels.
        """
        one = torch.ones(1, 1, dtype=torch.long)
        found = tuple(self(**dict.fromkeys(self._open()[1], one)).logits.shape)
        if found != (1, num_labels):
            raise ConfigurationError(
                f"{self.path} has {found[-1]} outputs, but config.json {num_labels} labels. Export the model again."
            )


def _open_onnx(path: Path) -> Opened:
    """An ONNX graph on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [entry.name for entry in session.get_outputs()]
    wanted = ["logits" if "logits" in outputs else outputs[0]]
    return lambda batch: session.run(wanted, batch)[0], [entry.name for entry in session.get_inputs()]


_CORE_LOCK = threading.Lock()


@functools.cache
def _openvino_core() -> Any:
    """One for the process, and kept to its end.

    Each core's CPU plugin gives the thread a stack for signal handlers, and takes it back with the core. Cores that go
    in another order than the reverse of that in which they came leave the thread a stack that is no longer there, and
    the next signal, such as Ctrl-C or the end of a dataloader's worker, writes to whatever memory is there then.
    """
    import openvino

    return openvino.Core()


def _open_openvino(path: Path) -> Opened:
    """An OpenVINO graph on the CPU, with as many threads as torch, in float32 unless it was made for another precision.

    By itself OpenVINO computes in bfloat16 wherever the processor has it.
    """
    with _CORE_LOCK:
        core = _openvino_core()
    model = core.read_model(path)
    hint = model.get_rt_info(PRECISION_HINT).astype(str) if model.has_rt_info(PRECISION_HINT) else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    names = [entry.get_any_name() for entry in compiled.inputs]
    return lambda batch: compiled(batch)[0], names


def load_exported(
    name: Any,
    num_labels: int | None,
    backend: str,
    file_name: str | None,
    source: dict[str, Any],
    needs_torch: Mapping[str, Any],
) -> Loaded:
    """An exported classifier of a folder or a repository, without torch's weights.

    Args:
        name: The folder, or the repository's name on the Hub.
        num_labels: C, if it must be that.
        backend: "onnx" or "openvino".
        file_name: Of several files, the one to take.
        source: Where to load from and what to trust: arguments of `from_pretrained`.
        needs_torch: Arguments that only torch can follow, by name; None for those that aren't given.

    Returns:
        The structure of the transformers model; its `forward` is the `ExportedModel`.

    Raises:
        ConfigurationError: There is no such file, or an argument can't be followed.
        MissingDependencyError: The backend isn't installed.
    """
    if backend not in EXPORTED:
        raise ConfigurationError(f'backend={backend!r}: expected "torch", "onnx" or "openvino".')
    for argument, value in needs_torch.items():
        if value is not None:
            raise ConfigurationError(
                f"{argument}={value!r} is for torch, but backend={backend!r} runs an exported file on the CPU as it "
                "was written. Leave one of them out; export() takes a precision."
            )
    if not isinstance(name, (str, Path)):
        raise ConfigurationError(
            f"backend={backend!r} runs an exported file: give the folder of the model, not a {type(name).__name__}. "
            f'CrossEncoder(model, tokenizer=tokenizer).export(folder, to="{backend}") writes one.'
        )
    require_packages({"onnx": "onnxruntime"}.get(backend, backend))
    path = find_exported(str(name), backend, file_name, source)
    loaded = load_structure(str(name), num_labels, source)
    exported = ExportedModel(path, cast("Target", backend))
    exported.check_outputs(loaded.model.config.num_labels)
    loaded.model.forward = exported
    return loaded


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """An exported file, and how far its scores are from torch's in float32.

    Attributes:
        path: The file.
        pairs: P, how many pairs were compared.
        longest: Tokens of the longest one.
        largest_logit_difference: Over all pairs and classes.
        largest_score_difference: The same after the activation.
        rank_correlation: Spearman's, between the logits of both; the lowest one of several classes.
    """

    path: Path
    pairs: int
    longest: int
    largest_logit_difference: float
    largest_score_difference: float
    rank_correlation: float

    def __str__(self) -> str:
        return (
            f"{self.path}\n"
            f"compared with torch in float32 on {self.pairs} pairs of up to {self.longest} tokens:\n"
            f"largest difference of logits {self.largest_logit_difference:.2g}, of scores "
            f"{self.largest_score_difference:.2g}; rank correlation {self.rank_correlation:.4f}"
        )


def export_model(
    model: Any,
    engine: ScoringEngine,
    activation: Activation,
    folder: Path,
    to: Target,
    precision: Precision,
    pairs: Sequence[Pair] | None = None,
) -> Export:
    """Write a classifier into a folder as ONNX or OpenVINO, if it scores pairs as torch does.

    Args:
        model: The classifier. It stays as it is.
        engine: How pairs are read and batched.
        activation: From logits [P, C] to scores.
        folder: The model's folder, made if it isn't there.
        to: The format.
        precision: See `write_graph`.
        pairs: What to compare scores on. Default: English questions and answers of 5 tokens to the longest.

    Raises:
        ConfigurationError: There is no such format or precision.
        MissingDependencyError: The extra `export` isn't installed.
        UnsupportedModelError: The model can't be exported, or scores otherwise afterwards. Nothing is left behind.
    """
    place = exported_file(to, precision)
    require_packages(*PACKAGES[to, precision])
    plain = _plain(model, engine.tokenizer.pad_token_id)
    engine = dataclasses.replace(
        engine,
        model=plain,
        device=torch.device("cpu"),
        max_length=min(engine.max_length or LONGEST_CHECK, LONGEST_CHECK),
    )
    pairs = _check_pairs(engine.max_length or 0) if pairs is None else list(pairs)
    with _working_in(folder) as temporary:
        path = temporary / Path(place).name
        recorded = scoring_view(plain)
        skip_unread_tokens(recorded)
        write_graph(recorded, _example(engine, pairs), path, to, precision)
        tolerance = TOLERANCE if precision == "fp32" else math.inf
        report = _compare(engine, ExportedModel(path, to), activation, pairs, tolerance)
        target = folder / place
        target.parent.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: file == path):  # the graph after its weights
            os.replace(file, target.parent / file.name)
    return dataclasses.replace(report, path=target)


def _plain(model: Any, pad_token_id: int | None) -> Any:
    """A copy of a classifier in float32 on the CPU, with its adapters merged."""
    model = copy.deepcopy(scoring_view(model, pad_token_id)).to(device="cpu", dtype=torch.float32)
    if not hasattr(model, "merge_and_unload"):
        return model
    try:
        return model.merge_and_unload()
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise UnsupportedModelError(f"The adapter can't be merged into the model, to be exported: {error}") from error


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[Path]:
    """A temporary folder in another one, which is made if necessary, and is removed again after an error."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
            yield Path(temporary)
    except BaseException:
        if is_new:
            folder.rmdir()
        raise


def _check_pairs(max_length: int) -> list[Pair]:
    """Pairs of questions and answers, and of longer texts up to `max_length` tokens and beyond."""
    text = " ".join(ANSWERS)
    long = " ".join([text] * (1 + max_length // len(text.split())))
    words = long.split()
    parts = [" ".join(words[: max_length // share]) for share in (8, 4, 2)]
    short = [(question, answer) for question in QUESTIONS for answer in ANSWERS]
    return [("a", "b"), *short, *((QUESTIONS[0], part) for part in parts), (QUESTIONS[1], long), (long, ANSWERS[0])]


def _example(engine: ScoringEngine, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Three padded pairs to record the model with."""
    encoded = encode_pairs(engine.tokenizer, pairs[:3], engine.max_length, engine.truncation)
    rows = list(range(len(encoded.lengths)))
    return pad_pairs(engine.tokenizer, encoded.features, rows, side=engine.padding_side)


def _compare(
    engine: ScoringEngine,
    exported: ExportedModel,
    activation: Activation,
    pairs: Sequence[Pair],
    tolerance: float,
) -> Export:
    """How far an exported model's scores are from those of the engine's model."""
    from scipy.stats import spearmanr

    expected, found = (_logits(dataclasses.replace(engine, model=each), pairs) for each in (engine.model, exported))
    difference = float(np.abs(expected - found).max())
    if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):  # NaN is no number to allow
        raise UnsupportedModelError(
            f"{type(engine.model).__name__}, exported to {exported.backend}, gives logits that differ from torch's by "
            f"{difference:.2g}, so it was removed. Score it with torch instead."
        )
    scores = [activation(torch.from_numpy(logits)) for logits in (expected, found)]
    lengths = encode_pairs(engine.tokenizer, pairs, engine.max_length, engine.truncation).lengths
    return Export(
        exported.path,
        len(pairs),
        int(lengths.max()),
        difference,
        float((scores[0] - scores[1]).abs().max()),
        min(float(spearmanr(*columns).statistic) for columns in zip(expected.T, found.T, strict=True)),
    )


def _logits(engine: ScoringEngine, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    return np.concatenate(list(engine.score(pairs, identity)))
