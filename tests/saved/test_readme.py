"""Generated parts of a README.md are exchanged; what somebody has changed stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cross_trainer.saved.readme import Readme

METADATA = {"library_name": "transformers", "tags": ["one", "two"]}
SECTIONS = {"scores": "## Scores", "usage": "## Usage\n\nCode."}


def rewritten(text, metadata=None, sections=None, **options):
    return Readme.parse(text).updated(
        METADATA if metadata is None else metadata, SECTIONS if sections is None else sections, **options
    )


FIRST = Readme().updated(METADATA, SECTIONS)


def test_the_same_facts_give_the_same_text():
    assert rewritten(FIRST) == FIRST
    assert Readme.parse(FIRST).edited == set()


def test_what_is_generated_follows_the_facts():
    text = rewritten(FIRST, {"library_name": "peft"}, {"usage": "## New"})
    assert Readme.parse(text).metadata == {"library_name": "peft"}
    assert Readme.parse(text).sections == {"usage": "## New"}
    back = rewritten(text)
    assert Readme.parse(back).metadata == METADATA
    assert Readme.parse(back).sections == SECTIONS


def test_an_emptied_section_stays_empty():
    text = FIRST.replace("## Scores\n", "")
    assert Readme.parse(rewritten(rewritten(text))).sections == {"scores": "", "usage": SECTIONS["usage"]}


def test_changed_added_and_removed_keys_stay_so():
    text = FIRST.replace("library_name: transformers\n", "license: mit\n").replace("- two\n", "- three\n")
    for _ in range(2):
        text = rewritten(text)
        assert Readme.parse(text).metadata == {"license": "mit", "tags": ["one", "three"]}


def test_what_a_user_asks_for_lasts():
    text = rewritten(rewritten(FIRST, given={"language": "en", "library_name": "mine"}))
    assert Readme.parse(text).metadata == {**METADATA, "language": "en", "library_name": "mine"}


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")))
def test_any_text_around_sections_stays(text):
    once = rewritten(FIRST + "\n" + text)
    assert rewritten(once) == once
    assert text.strip() in once or "cross_trainer:" in text
