r"""The template of a pair: the text in which a model reads a query and a document, and an instruction if it takes one.

    template = Template.of("Instruct: {instruction}\nQuery: {query}\nDocument: {document}\nRelevant:")
    encode_pairs(tokenizer, pairs, max_length=512, truncation="only_second", template=template)

A template is a text, or a list of texts that are tokenised one by one: where a published model's own code does so,
tokens don't merge across their ends, and the same text would give other tokens in one piece. It holds every special
token that the model reads, by its text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cross_trainer.errors import ConfigurationError

PLACES = ("instruction", "query", "document")
_PLACE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Template:
    """The text of a pair.

    >>> Template.of("Query: {query} Document: {document}").fill("a cat", "it purrs")
    ['Query: a cat Document: it purrs']

    Attributes:
        parts: Texts that are tokenised one by one, with `{query}`, `{document}` and, where the model takes one,
            `{instruction}` in them.
        instruction: What stands for `{instruction}` where a pair has none of its own.
        bare: The parts for pairs without any instruction. None: every pair needs one.
        strip: Whether texts are read without the white space around them.
    """

    parts: tuple[str, ...]
    instruction: str | None = None
    bare: tuple[str, ...] | None = None
    strip: bool = False

    @classmethod
    def of(cls, given: Template | str | Sequence[str] | Mapping[str, Any]) -> Template:
        """A template by its text, its parts, a name of `PUBLISHED` or what `to_dict` gave.

        Raises:
            ConfigurationError: It has no place for the query or the document, twice the same place, or an unknown one;
                or no template has that name. The message names it.
        """
        if isinstance(given, Template):
            return given
        if isinstance(given, Mapping):
            bare = given.get("bare")
            fields = {**given, "parts": tuple(given["parts"]), "bare": None if bare is None else tuple(bare)}
            return cls(**fields)
        if isinstance(given, str) and given in PUBLISHED:
            return PUBLISHED[given]
        template = cls((given,) if isinstance(given, str) else tuple(given))
        template.check()
        return template

    def check(self) -> None:
        """Check that a template has its places.

        Raises:
            ConfigurationError: See `of`.
        """
        text = "".join(self.parts)
        places = _PLACE.findall(text)
        unknown = [place for place in places if place not in PLACES]
        if not places:
            raise ConfigurationError(
                f"template={text!r} is unknown: expected a text with {{query}} and {{document}} in it, or one of "
                f"{', '.join(map(repr, PUBLISHED))}."
            )
        if unknown:
            raise ConfigurationError(
                f"template={text!r} has the place {{{unknown[0]}}}: there are {{instruction}}, {{query}} and "
                "{document}."
            )
        for place in ("query", "document"):
            if place not in places:
                raise ConfigurationError(f"template={text!r} has no {{{place}}}: say where that text goes.")
        for place in PLACES:
            if places.count(place) > 1:
                raise ConfigurationError(f"template={text!r} has {{{place}}} more than once: name it once.")

    @property
    def takes_instruction(self) -> bool:
        """Whether there is a place for an instruction."""
        return any("{instruction}" in part for part in self.parts)

    def parts_for(self, instruction: str | None) -> tuple[str, ...]:
        """The parts of a pair with this instruction, or with none."""
        return self.bare if instruction is None and self.bare is not None else self.parts

    def fill(self, query: str, document: str, instruction: str | None = None) -> list[str]:
        """The text of each part.

        Args:
            query: The first text.
            document: The second.
            instruction: Instead of the template's own.
        """
        instruction = self.instruction if instruction is None else instruction
        values = self.values(query, document, instruction)
        return [fill_part(part, values)[0] for part in self.parts_for(instruction)]

    def values(self, query: str, document: str, instruction: str | None) -> dict[str, str]:
        """What stands in each place."""
        if self.strip:
            query, document = query.strip(), document.strip()
        return {"query": query, "document": document, "instruction": instruction or ""}

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds of it: the fields that differ from their defaults."""
        found = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value != defaults[name]
        }


def fill_part(part: str, values: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A part with texts in its places, and where each of them starts and ends in it."""
    text, spans, done = "", {}, 0
    for found in _PLACE.finditer(part):
        name = found[1]
        if name not in values:  # braces of a published template's own
            continue
        text += part[done : found.start()]
        spans[name] = (len(text), len(text) + len(values[name]))
        text += values[name]
        done = found.end()
    return text + part[done:], spans


def choose_template(
    template: Template | str | Sequence[str] | Mapping[str, Any] | None, instruction: str | None = None
) -> Template | None:
    """The template that arguments ask for, with an instruction in it; None for none.

    Raises:
        ConfigurationError: There is an instruction and no place for it, or a place and no instruction; or see
            `Template.of`.
    """
    if template is None:
        if instruction is not None:
            raise ConfigurationError(
                f"instruction={instruction!r} has no place to stand in: pairs are read without a template. Give a "
                "template with {instruction}, {query} and {document}."
            )
        return None
    chosen = Template.of(template)
    if instruction is not None:
        if not chosen.takes_instruction:
            raise ConfigurationError(
                f"instruction={instruction!r} has no place to stand in: the template {''.join(chosen.parts)!r} has no "
                "{instruction}."
            )
        chosen = dataclasses.replace(chosen, instruction=instruction)
    return chosen


def check_fits(template: Template, tokenizer: Any, max_length: int | None, taken: int) -> None:
    """Check that a template leaves room for a pair, and that its end can be found again.

    Args:
        template: The template.
        tokenizer: The model's.
        max_length: Tokens of a pair at most.
        taken: Tokens of the template with a text of one letter in every place.

    Raises:
        ConfigurationError: It doesn't.
    """
    if max_length is not None and taken > max_length:
        raise ConfigurationError(
            f"max_length={max_length} leaves no room for two texts in the template, which takes about {taken - 2} "
            "tokens itself."
        )
    last = template.parts[-1]
    if tokenizer.pad_token and last.endswith(tokenizer.pad_token):
        raise ConfigurationError(
            f"The template ends with {tokenizer.pad_token!r}, which is the token that fills rows up, so that its end "
            "can't be told from padding. Set tokenizer.pad_token to another token, and model.config.pad_token_id to "
            "its id."
        )


_QWEN = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"


def _mxbai(query: str) -> tuple[str, ...]:
    return (
        _QWEN.format("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        query,
        "\n",
        "document: {document}",
        "\n",
        (
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
        ),
        "<|im_end|>\n<|im_start|>assistant\n",
    )


PUBLISHED = {
    "qwen3-reranker": Template(
        parts=(
            _QWEN.format(
                "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note "
                'that the answer can only be "yes" or "no".'
            ),
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    "mxbai-rerank-v2": Template(
        parts=_mxbai("instruction: {instruction}\nquery: {query}"),
        bare=_mxbai("query: {query}"),
    ),
    "bge-reranker-v2-gemma": Template(
        parts=(
            "<bos>",
            "A: {query}",
            "\n",
            "B: {document}",
            "\n",
            (
                "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
                "providing a prediction of either 'Yes' or 'No'."
            ),
        ),
    ),
}
"""Templates of published models, in the pieces in which their own code tokenises them."""
