"""Every example in a docstring of the package gives the output that stands below it."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import cross_trainer

MODULES = [module.name for module in pkgutil.walk_packages(cross_trainer.__path__, "cross_trainer.")]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_their_output(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.failed == 0


@pytest.mark.parametrize("name", cross_trainer.__all__)
def test_a_public_name_has_an_example(name):
    assert ">>>" in getattr(cross_trainer, name).__doc__
