"""What is half done is gone on with, told from what is of other settings, and never taken for whole."""

from __future__ import annotations

import numpy as np
import pytest

from cross_trainer.commands.partial import PartialScores
from cross_trainer.errors import ConfigurationError


def test_windows_are_kept_and_counted(tmp_path):
    partial = PartialScores(tmp_path / "deep" / "out.partial")
    partial.begin({"model": "m"})
    scores = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert partial.missing(3) == [0, 1, 2]
    for index in (0, 2):
        partial.save(index, scores[index * 3 : index * 3 + 3])
    assert partial.missing(3) == [1]
    partial.save(1, scores[3:6])
    assert partial.missing(3) == []
    assert np.array_equal(np.concatenate(list(partial.scores(3))), scores)
    again = PartialScores(partial.folder)
    again.begin({"model": "m"})
    assert again.missing(3) == []
    last = max(partial.folder.glob("scores-*"))
    for content in (b"", last.read_bytes()[:-1]):
        last.write_bytes(content)
        assert again.missing(3) == [2]
    again.finish()
    assert not partial.folder.exists()


def test_other_settings_are_told_apart(tmp_path):
    partial = PartialScores(tmp_path / "out.partial")
    settings = {"model": "m" * 64, "--window": 3, "texts": ["a", "b"]}
    partial.begin(settings)
    partial.save(0, np.zeros((3, 1), np.float32))
    with pytest.raises(
        ConfigurationError,
        match=r"out.partial holds.*another model, --window 3 there, 4 here.*delete that folder.*--overwrite",
    ):
        partial.begin({**settings, "model": "n" * 64, "--window": 4})
    partial.begin(settings, overwrite=True)
    assert partial.missing(1) == []
    partial.begin({**settings, "--window": 4}, overwrite=True)
    assert partial.missing(1) == [0]
    (partial.folder / "settings.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"settings.json can't be read.*Delete the folder"):
        partial.begin(settings)


def test_scores_without_settings_are_not_trusted(tmp_path):
    partial = PartialScores(tmp_path / "out.partial")
    partial.begin({})
    partial.save(0, np.zeros((3, 1), np.float32))
    (partial.folder / "settings.json").unlink()
    partial.begin({})
    assert partial.missing(1) == [0]


def test_a_folder_that_is_being_removed_is_told_from_one_half_done(tmp_path, monkeypatch):
    partial = PartialScores(tmp_path / "out.partial")
    partial.begin({"model": "m"})
    monkeypatch.setattr(partial, "remove", lambda: None)  # killed right there
    partial.finish()
    assert partial.was_finished({"model": "m"})
    assert not partial.was_finished({"model": "n"})


def test_nothing_of_others_is_removed(tmp_path):
    partial = PartialScores(tmp_path / "out.partial")
    partial.begin({})
    (partial.folder / "thesis.txt").write_text("mine")
    with pytest.raises(OSError, match=r"out\.partial"):
        partial.begin({"other": 1}, overwrite=True)
    assert (partial.folder / "thesis.txt").exists()
