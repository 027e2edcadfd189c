"""What sentence-transformers' own files say about a cross-encoder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cross_trainer.saved.folder import (
    read_json,
)
from cross_trainer.saved.modular import Files, modular_obstacle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentenceTransformersFiles:
    """What sentence-transformers' own files say about a cross-encoder; nothing where there is no `modules.json`.

    Attributes:
        obstacle: What keeps the modules from being a plain classifier, in words; None where nothing does.
        activation: The class path of what makes scores of logits.
        max_length: Tokens of a pair at most.
        prompts: Texts by name that may be put before the first text of a pair.
        default_prompt_name: The one of them that is put there.
        answers: The tokens that a causal language model answers with.
        chat: How pairs are made messages, as `read_chat_template` takes it; None where they aren't.
        modules: What `modules.json` lists, where it pools and scores by modules of its own, see `saved.modular`.
    """

    obstacle: str | None = None
    activation: str | None = None
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    answers: tuple[int, ...] = ()
    chat: dict[str, Any] | None = None
    modules: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, name: str, source: Mapping[str, Any]) -> SentenceTransformersFiles:
        """Read the files of a folder or a repository; files of models that aren't cross-encoders say nothing."""
        modules = read_json(name, "modules.json", source)
        told = read_json(name, "config_sentence_transformers.json", source) if modules else None
        if not modules or not told or told.get("model_type") != "CrossEncoder":
            return cls()
        reading = read_json(name, "sentence_bert_config.json", source) or {}
        default, prompts = told.get("default_prompt_name"), told.get("prompts") or {}
        path = modules[1].get("path") if kinds_of(modules) == _ANSWERING else None
        head = {} if path is None else read_json(name, f"{path}/config.json", source) or {}
        answers = [head.get(key) for key in ("true_token_id", "false_token_id")]
        return cls(
            _obstacle(modules, reading, default, prompts, functools.partial(read_json, name, source=source)),
            told.get("activation_fn"),
            reading.get("max_seq_length"),
            prompts,
            default,
            tuple(token for token in answers if token is not None),
            _chat(reading, prompts.get(default)),
            tuple(modules) if len(modules) > 1 and kinds_of(modules) != _ANSWERING else (),
        )


_ANSWERING = ["Transformer", "LogitScore"]


def kinds_of(modules: list[Any]) -> list[str]:
    """The class names of modules, without their paths."""
    return [str(module.get("type", "")).rpartition(".")[2] for module in modules]


def _chat(reading: dict[str, Any], instruction: str | None) -> dict[str, Any] | None:
    """How messages are read, where they are: sentence-transformers makes messages of pairs whenever it can."""
    if "message" not in reading.get("modality_config", {}):
        return None
    options = dict((reading.get("processing_kwargs") or {}).get("chat_template") or {})
    options.pop("restore_suffix", None)  # sentence-transformers' own: the end of a template always stays here
    form = reading["modality_config"]["message"].get("format")
    return {"options": options, "format": form, "instruction": instruction}


def _obstacle(
    modules: list[Any], reading: dict[str, Any], default: str | None, prompts: dict[str, str], files: Files
) -> str | None:
    kinds = kinds_of(modules)
    reason = None if kinds in (["Transformer"], _ANSWERING) else modular_obstacle(modules, kinds, files)
    if reason is not None or modules[0].get("path"):
        return reason or f"the modules {', '.join(kinds)} of sentence-transformers, with a Transformer in a folder"
    expected = {1: "sequence-classification"}.get(len(kinds), "feature-extraction")
    expected = "text-generation" if kinds == _ANSWERING else expected
    task = reading.get("transformer_task", expected)
    if task != expected:
        return f"a Transformer of sentence-transformers with the task {task!r}"
    if "text" not in reading.get("modality_config", {"text": {}}):
        return f"a Transformer of sentence-transformers that reads {', '.join(reading['modality_config'])}, not text"
    processing = {key: value for key, value in (reading.get("processing_kwargs") or {}).items() if value}
    processing.pop("chat_template", None)
    said = {**reading, "processing_kwargs": processing}
    odd = [key for key in ("processing_kwargs", "do_lower_case") if said.get(key)]
    if odd:
        return f"{odd[0]}={reading[odd[0]]!r} in sentence_bert_config.json, which isn't understood"
    if default is not None and default not in prompts:
        return f"default_prompt_name={default!r} in config_sentence_transformers.json among the prompts {list(prompts)}"
    return None
