"""A README.md that is written again with every save, in which what somebody has changed stays as it is.

    readme = Readme.read(folder / "README.md")
    text = readme.updated({"library_name": "transformers"}, {"scores": "## Scores", "usage": "## Usage"})

Each generated section stands between two comments, the first of which holds a digest of the section's text. A section
whose text has another digest was edited, and stays. So does all text outside the sections, and every key of the
metadata that was added or changed; the digests of the generated keys stand in a comment of their own at the end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_BEGIN = "<!-- cross_trainer: begin {name} {digest} -->"
_END = "<!-- cross_trainer: end {name} -->"
_SECTION = re.compile(
    r"<!-- cross_trainer: begin (?P<name>\w+) (?P<digest>\w+) -->\n(?P<text>.*?)\n?"
    r"<!-- cross_trainer: end (?P=name) -->",
    re.DOTALL,
)
_KEYS = re.compile(r"\n*<!-- cross_trainer: metadata (?P<digests>\{[^}\n]*\}) -->\n?")


@dataclass(frozen=True)
class Readme:
    r"""A README.md as it is found.

    >>> first = Readme().updated({"library_name": "transformers"}, {"scores": "## Scores", "usage": "## Usage"})
    >>> edited = Readme.parse(first.replace("## Usage", "## How I use it") + "\nMy notes.\n")
    >>> print(edited.updated({"library_name": "transformers"}, {"scores": "## New scores", "usage": "## New usage"}))
    ---
    library_name: transformers
    ---
    <BLANKLINE>
    <!-- cross_trainer: begin scores ... -->
    ## New scores
    <!-- cross_trainer: end scores -->
    <BLANKLINE>
    <!-- cross_trainer: begin usage ... -->
    ## How I use it
    <!-- cross_trainer: end usage -->
    <BLANKLINE>
    My notes.
    <BLANKLINE>
    <!-- cross_trainer: metadata {"library_name": "..."} -->
    <BLANKLINE>

    Attributes:
        metadata: The YAML at the top.
        body: What follows it, without the comment on the metadata.
        digests: Those of the generated keys of the metadata.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    body: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Readme:
        """Take a README.md apart; metadata that isn't a mapping counts as text."""
        import yaml
        from huggingface_hub.repocard import REGEX_YAML_BLOCK

        found, metadata, body = REGEX_YAML_BLOCK.search(text), None, text
        if found is not None:
            try:
                metadata = yaml.safe_load(found.group(2))
            except yaml.YAMLError as error:
                logger.warning("The metadata of README.md is no YAML, and is kept as text: %s", error)
            body = text[found.end() :] if isinstance(metadata, dict) else text
        keys = _KEYS.search(body)
        digests = {} if keys is None else json.loads(keys["digests"])
        return cls(metadata if isinstance(metadata, dict) else {}, _KEYS.sub("\n", body).strip(), digests)

    @classmethod
    def read(cls, path: Path) -> Readme:
        """The README.md of a folder; an empty one where there is none."""
        return cls.parse(path.read_text(encoding="utf-8-sig")) if path.is_file() else cls()

    @property
    def is_ours(self) -> bool:
        """Whether a section of it was generated."""
        return _SECTION.search(self.body) is not None

    @property
    def edited(self) -> set[str]:
        """The sections that somebody has changed."""
        return {each["name"] for each in _SECTION.finditer(self.body) if _digest(each["text"]) != each["digest"]}

    @property
    def sections(self) -> dict[str, str]:
        """The text of each section, by name."""
        return {each["name"]: each["text"] for each in _SECTION.finditer(self.body)}

    @property
    def generated(self) -> dict[str, Any]:
        """The keys of the metadata that are as they were generated."""
        return {key: value for key, value in self.metadata.items() if self.digests.get(key) == _value_digest(value)}

    @property
    def added(self) -> dict[str, Any]:
        """The keys that somebody has added or changed."""
        return {key: value for key, value in self.metadata.items() if key not in self.generated}

    def updated(
        self,
        metadata: Mapping[str, Any],
        sections: Mapping[str, str],
        given: Mapping[str, Any] | None = None,
    ) -> str:
        """The text with its generated parts exchanged.

        Args:
            metadata: Keys to generate. One that is there with another value than was generated stays as it is.
            sections: Texts by name, in the order in which new ones are added at the end.
            given: Keys that a user asks for, which take precedence.
        """
        keys = self._metadata(metadata, dict(given or {}))
        known = {each["name"] for each in _SECTION.finditer(self.body)}

        def exchanged(match: re.Match[str]) -> str:
            name = match["name"]
            if name in self.edited:
                return match[0]
            return _section(name, sections[name]) if name in sections else ""

        body = re.sub(r"\n{3,}", "\n\n", _SECTION.sub(exchanged, self.body)) if known else self.body
        added = [_section(name, text) for name, text in sections.items() if name not in known]
        digests = {key: _value_digest(value) for key, value in keys.items() if value == metadata.get(key)}
        digests |= {key: digest for key, digest in self.digests.items() if key not in self.metadata}
        comment = f"<!-- cross_trainer: metadata {json.dumps(digests)} -->"
        return (
            _front(keys) + "\n" + "\n\n".join(part.strip() for part in (body, *added, comment) if part.strip()) + "\n"
        )

    def _metadata(self, generated: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """The keys that stay and those that are new."""
        removed = {key for key in self.digests if key not in self.metadata}
        new = {key: value for key, value in generated.items() if key not in removed and value is not None}
        return {**new, **self.added, **given}


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def _value_digest(value: Any) -> str:
    return _digest(json.dumps(value, sort_keys=True, default=str))


def _section(name: str, text: str) -> str:
    text = text.strip()
    return f"{_BEGIN.format(name=name, digest=_digest(text))}\n{text}\n{_END.format(name=name)}"


def _front(metadata: Mapping[str, Any]) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True).strip()}\n---\n"
