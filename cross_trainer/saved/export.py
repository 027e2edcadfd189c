"""A classifier written as ONNX or OpenVINO, where other tools look for it in a model's folder.

torch's own exporter records the model as a graph, with any number of pairs and tokens; OpenVINO converts that graph.
8 bits come from onnxruntime's dynamic quantization and from nncf.

Shapes: P pairs, L tokens of a padded row, C classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from cross_trainer.errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from cross_trainer.saved.folder import find_file

Target: TypeAlias = Literal["onnx", "openvino"]
Precision: TypeAlias = Literal["fp32", "int8", "bf16"]

EXPORTED: dict[str, dict[str, str]] = {
    "onnx": {"fp32": "model.onnx", "int8": "model_quantized.onnx"},
    "openvino": {
        "fp32": "openvino_model.xml",
        "int8": "openvino_model_qint8_quantized.xml",
        "bf16": "openvino_model_bf16.xml",
    },
}
"""Files by format and precision, in a folder of the format's name.

sentence-transformers and optimum load the first of each format, and the others by `file_name`. fastembed and
transformers.js load `onnx/model.onnx`, and transformers.js `onnx/model_quantized.onnx` for its dtype "q8".
"""

PACKAGES = {
    ("onnx", "fp32"): ("onnxscript", "onnxruntime"),
    ("onnx", "int8"): ("onnxscript", "onnx", "onnxruntime"),
    ("openvino", "fp32"): ("onnxscript", "openvino"),
    ("openvino", "int8"): ("onnxscript", "openvino", "nncf"),
    ("openvino", "bf16"): ("onnxscript", "openvino"),
}

LARGEST_FILE = 2_000_000_000
"""Bytes of weights that an ONNX file holds itself: a protobuf message has less than 2 GiB."""

PRECISION_HINT = ["runtime_options", "INFERENCE_PRECISION_HINT"]
"""Where an OpenVINO graph says in which precision it was made to run."""

GROUP_SIZE = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
"""Where an OpenVINO graph says how many neighbours among the inputs of a layer are rounded to 8 bits with one scale."""

LARGEST_GROUP = 128
"""MiniLM scores 1.2 times as many pairs as with OpenVINO's own 32. Larger groups gain little and round coarsely."""


def exported_file(to: str, precision: str = "fp32") -> str:
    """Where in a model's folder an export lies.

    >>> exported_file("onnx"), exported_file("openvino", "int8")
    ('onnx/model.onnx', 'openvino/openvino_model_qint8_quantized.xml')

    Raises:
        ConfigurationError: There is no such format, or not in this precision.
    """
    if to not in EXPORTED:
        raise ConfigurationError(f"to={to!r}: expected {_either(EXPORTED)}.")
    if precision not in EXPORTED[to]:
        hint = " onnxruntime has no bfloat16 on CPUs; OpenVINO has." if precision == "bf16" else ""
        raise ConfigurationError(f"precision={precision!r}: expected {_either(EXPORTED[to])} for {to}.{hint}")
    return f"{to}/{EXPORTED[to][precision]}"


def _either(names: Mapping[str, Any]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def require_packages(*names: str) -> None:
    """Check that packages of the extra `export` are there.

    Raises:
        MissingDependencyError: One of them isn't.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f'{", ".join(missing)} is missing: pip install "cross-trainer[export]"')


def write_graph(model: nn.Module, batch: Mapping[str, Tensor], path: Path, to: Target, precision: Precision) -> None:
    """Write a classifier as a graph, from `input_ids` and the like [P, L] to `logits` [P, C] in float32.

    Args:
        model: A classifier in float32 on the CPU, in evaluation mode.
        batch: Pairs to record it with, of the tokenizer's names. A name that the model doesn't read is no input.
        path: The file to write, in a folder that is there; weights may lie beside it.
        to: The format.
        precision: "fp32"; "int8" for 8-bit weights; "bf16" for bfloat16 where the processor has it, in half the space.

    Raises:
        UnsupportedModelError: The model can't be recorded or converted.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = (to, precision) == ("onnx", "fp32")
        recorded = path if plain else Path(folder, "model.onnx")
        try:
            with _without_advice():
                _record(model, batch, recorded)
                if to == "openvino":
                    _convert(recorded, path, precision, _group_size(model))
                elif precision == "int8":
                    _quantize(recorded, path)
        except Exception as error:  # of torch, onnxruntime, OpenVINO or nncf, which share no other parent
            raise UnsupportedModelError(
                f"{type(model).__name__} can't be exported to {to}: {first_line(error)} Score it with torch instead."
            ) from error


def first_line(error: BaseException) -> str:
    """The first line of the reason at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Log nothing of torch's exporter that is no error, and leave logging as it was.

    The converters add handlers to the root logger, and raise the levels of those that are there.
    """
    root, exporter = logging.getLogger(), logging.getLogger("torch.onnx")
    handlers = list(root.handlers)
    leveled: list[logging.Logger | logging.Handler] = [root, exporter, *handlers]
    levels = [each.level for each in leveled]
    exporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for each, level in zip(leveled, levels, strict=True):
            each.setLevel(level)


class _Logits(nn.Module):
    """A classifier that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Any:
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        named = {name: values for name, values in given.items() if values is not None}
        return self.model(input_ids=input_ids, **named).logits.float()


def _record(model: nn.Module, batch: Mapping[str, Tensor], path: Path) -> None:
    import onnx_ir

    sizes = {name: {0: "batch", 1: "sequence"} for name in batch}
    with torch.no_grad():
        program: Any = torch.onnx.export(
            _Logits(model).eval(),
            kwargs=dict(batch),
            dynamic_shapes=sizes,
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    inputs = program.model.graph.inputs
    for entry in [entry for entry in inputs if not entry.uses()]:
        inputs.remove(entry)
    weights = sum(values.nbytes for values in {*model.parameters(), *model.buffers()})
    # optimum and transformers.js look for the weights of a large model under this name.
    onnx_ir.save(program.model, path, external_data=f"{path.name}_data" if weights > LARGEST_FILE else None)


def _quantize(source: Path, path: Path) -> None:
    """8-bit weights for every processor: 7 bits of them, since older ones would overflow on 8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name("prepared.onnx")
    large = source.with_name(f"{source.name}_data").exists()
    quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=large)
    quantize_dynamic(
        prepared,
        path,
        op_types_to_quantize=["MatMul", "Gather"],  # the head, a Gemm, stays
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=large,
    )


def _group_size(model: nn.Module) -> int:
    """The largest power of two, up to `LARGEST_GROUP`, that divides the width of every layer's input."""
    widths = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
    return math.gcd(LARGEST_GROUP, *widths)


def _convert(source: Path, path: Path, precision: Precision, group_size: int) -> None:
    import openvino

    model = openvino.convert_model(source)
    if precision == "int8":
        import nncf

        nncf.set_log_level(logging.ERROR)  # it prints a table otherwise
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        if group_size > 32:  # which is OpenVINO's own
            model.set_rt_info(str(group_size), GROUP_SIZE)
    if precision == "bf16":
        model.set_rt_info("bf16", PRECISION_HINT)
    openvino.save_model(model, path, compress_to_fp16=precision == "bf16")  # bfloat16 keeps less of a weight


def beside(path: Path, to: str) -> list[Path]:
    """Where the weights of a graph may lie, if not in the file itself."""
    if to == "openvino":
        return [path.with_suffix(".bin")]
    return [path.with_name(f"{path.name}_data"), path.with_name(f"{path.name}.data")]


def find_exported(name: str, to: str, file_name: str | None, source: Mapping[str, Any]) -> Path:
    """The exported file of a folder or a repository.

    Args:
        name: The folder, or the repository's name on the Hub.
        to: The format.
        file_name: Of several files, the one to take, in the folder itself or in the one of the format's name.
        source: Where to load from: arguments of `from_pretrained`.

    Raises:
        ConfigurationError: It isn't there.
    """
    wanted = EXPORTED[to]["fp32"] if file_name is None else file_name
    for place in (wanted, f"{to}/{wanted}"):
        found = find_file(name, place, source)
        if found is not None:
            for weights in beside(Path(place), to):  # on the Hub, they are fetched
                find_file(name, weights.as_posix(), source)
            return found
    others = sorted(path.name for path in Path(name, to).glob(f"*{Path(EXPORTED[to]['fp32']).suffix}"))
    instead = f" There is file_name={' or '.join(map(repr, others))}." if others else ""
    precisions = [f" --precision {key}" for key, file in EXPORTED[to].items() if file == wanted and key != "fp32"]
    raise ConfigurationError(
        f"{name} has no {to}/{wanted}.{instead} To write it: cross-trainer export {name} --to {to}{''.join(precisions)}"
    )
