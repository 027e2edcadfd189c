"""The template of a model's pairs as a chat template, and back, by the roles that sentence-transformers and vLLM use.

A pair is a conversation there: a message of the role `query`, one of the role `document`, and before them, if there is
an instruction, one of the role `system`. A template is told here by what
`cross_trainer.data.templates.Template.to_dict` gives: `parts` around `{instruction}`, `{query}` and `{document}`, the
default `instruction`, the parts without one (`bare`), and whether texts are read without the white space around them
(`strip`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cross_trainer.errors import ConfigurationError

_MARKS = ("\ue000i\ue001", "\ue000q\ue001", "\ue000d\ue001")  # private to us, so in no chat template
_PLACES = ("{instruction}", "{query}", "{document}")
_PROBE = ("Find the  answer.", "Why is it?\nWhy?", "It was so: that's why.")


def read_chat_template(tokenizer: Any, chat: Mapping[str, Any]) -> dict[str, Any]:
    """The template that a tokenizer's chat template makes of pairs.

    Args:
        tokenizer: It has the chat template.
        chat: `options` of `apply_chat_template`, the `format` of a message's content ("structured" for lists), and the
            default `instruction`, if there is one.

    Raises:
        ConfigurationError: There is no chat template, or it does more than put the texts in their places.
    """
    if not tokenizer.chat_template:
        raise ConfigurationError("The model reads pairs as messages, and its tokenizer has no chat template.")
    instruction, query, document = _MARKS
    plain = _render(tokenizer, chat, None, query, document)
    told = _render(tokenizer, chat, instruction, query, document)
    padded = _render(tokenizer, chat, None, f"\v{query}\v", f"\v{document}\v")
    if not all(text.count(mark) == 1 for text in (plain, padded) for mark in (query, document)):
        raise ConfigurationError(
            "The chat template of the tokenizer doesn't put a message of the role 'query' and one of the role "
            "'document' in their places, so it is none for pairs. Give a template with {query} and {document}."
        )
    template: dict[str, Any] = {"parts": [_with_places(plain)], "strip": f"\v{query}\v" not in padded}
    if told.count(instruction) == 1:
        template |= {"parts": [_with_places(told)], "instruction": chat.get("instruction")}
        start, end = told.split(instruction)
        if template["instruction"] is None and plain.startswith(start) and plain.endswith(end):
            template["instruction"] = plain[len(start) : len(plain) - len(end)]
        elif template["instruction"] is None:
            template["bare"] = [_with_places(plain)]
    _check_equal(tokenizer, chat, template)
    return template


def _render(tokenizer: Any, chat: Mapping[str, Any], instruction: str | None, query: str, document: str) -> str:
    texts = (("system", instruction), ("query", query), ("document", document))
    structured = chat.get("format") == "structured"
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in texts
        if text is not None
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **chat.get("options", {})))
    except Exception as error:  # a template raises what it likes
        raise ConfigurationError(
            "The chat template of the tokenizer can't be used on messages of the roles 'query' and 'document': "
            f"{error}. Give a template with {query} and {document}."
        ) from error


def _with_places(text: str) -> str:
    for mark, place in zip(_MARKS, _PLACES, strict=True):
        text = text.replace(mark, place)
    return text


def _check_equal(tokenizer: Any, chat: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Check that the template makes the same of other texts."""
    given, *texts = _PROBE
    for instruction in (given, None):
        parts: list[str] = template["parts"]
        if instruction is None and "bare" in template:
            parts = template["bare"]
        filled = "".join(parts)
        values = (instruction or template.get("instruction") or "", *texts)
        for place, value in zip(_PLACES, values, strict=True):
            filled = filled.replace(place, value)
        asked = instruction if instruction is not None or chat.get("instruction") is None else chat["instruction"]
        if filled != _render(tokenizer, chat, asked, *texts):
            raise ConfigurationError(
                "The chat template of the tokenizer does more than put an instruction, a query and a document in their "
                "places, so pairs can't be cut as it would. Give a template with {query} and {document}."
            )


def write_chat_template(template: Mapping[str, Any]) -> str:
    r"""The chat template that makes of a pair's messages what a template makes of its texts.

    >>> print(write_chat_template({"parts": ["Q: {query}\n", "A: {document}"]}).splitlines()[-1])
    {{- "Q: " + pair.query + "\nA: " + pair.document -}}
    """
    trim = " | trim" if template.get("strip") else ""
    default = "none" if template.get("instruction") is None else _quoted(template["instruction"])
    lines = [f'{{%- set pair = namespace(instruction={default}, query="", document="") -%}}']
    lines.append("{%- for message in messages -%}")
    for role, name in (("system", "instruction"), ("query", "query"), ("document", "document")):
        value = "message.content" + ("" if role == "system" else trim)
        lines.append(f'{{%- if message.role == "{role}" -%}}{{%- set pair.{name} = {value} -%}}{{%- endif -%}}')
    lines.append("{%- endfor -%}")
    filled = f"{{{{- {_expression(template['parts'])} -}}}}"
    if template.get("bare"):
        bare = f"{{{{- {_expression(template['bare'])} -}}}}"
        lines += ["{%- if pair.instruction is none -%}", bare, "{%- else -%}", filled, "{%- endif -%}"]
    else:
        lines.append(filled)
    return "\n".join(lines) + "\n"


def _expression(parts: list[str]) -> str:
    """The parts, joined, as an expression of Jinja."""
    pieces = ["".join(parts)]
    for place in _PLACES:
        pieces = [piece for text in pieces for piece in _split(text, place)]
    return " + ".join(f"pair.{piece[1:-1]}" if piece in _PLACES else _quoted(piece) for piece in pieces)


def _split(text: str, place: str) -> list[str]:
    before, found, after = text.partition(place)
    return [piece for piece in (before, found, after) if piece]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_SERVING = (
    "The model reads a pair as this text, without special tokens beyond those in it. Servers that apply the "
    "tokenizer's chat template, to messages of the roles `query` and `document` and an instruction as `system`, make "
    "it themselves; others must be given it."
)
_IN_TWO = (
    "A server that takes two texts and joins them gets this as the first, and the rest of the text above as the second:"
)


def serving_format(template: Mapping[str, Any] | None) -> str | None:
    """What a server must be told that doesn't read chat templates: how a pair becomes the text that the model reads.

    It is Markdown, for a person to read, a model card for instance.

    Args:
        template: As `cross_trainer.saved.folder.saved_template` gives it for a saved folder; None for a model that
            reads the tokenizer's own form of a pair.

    Returns:
        None where there is no template.
    """
    if template is None:
        return None
    text = "".join(template["parts"])
    lines = [_SERVING, _fenced(text)]
    if template.get("instruction") is not None:
        lines += ["The instruction, if there is no other:", _fenced(template["instruction"])]
    if template.get("bare"):
        lines += ["Without an instruction, the text is:", _fenced("".join(template["bare"]))]
    if template.get("strip"):
        lines.append("Both texts are read without the white space around them.")
    end = text.find("{query}") + len("{query}")
    if end < text.find("{document}"):
        lines += [_IN_TWO, _fenced(text[:end])]
    lines.append("A text that is too long is cut at the end of the document, never in what follows it.")
    return "\n\n".join(lines) + "\n"


def _fenced(text: str) -> str:
    return f"````text\n{text}\n````"
