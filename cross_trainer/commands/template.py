"""Show the text in which a model reads a pair, for whoever serves it with other tools.

`cross-trainer template` calls `show_template`, so its messages name the options of the command line.
"""

from __future__ import annotations

import typer

from cross_trainer.errors import ConfigurationError
from cross_trainer.saved.naming import naming


def show_template(model: str, revision: str | None = None) -> None:
    """Print how a server must put pairs before a model.

    Args:
        model: A name on the Hub or a folder.
        revision: A branch, tag or commit of the repository.

    Raises:
        ConfigurationError: There is no such model, or it reads pairs as its tokenizer joins them, without a template.
    """
    from cross_trainer.data.templates import Template
    from cross_trainer.saved.chat import serving_format
    from cross_trainer.saved.folder import saved_template
    from cross_trainer.saved.loading import read_model

    with naming(model):
        config, _ = read_model(model, {"revision": revision})
    template = saved_template(config)
    if template is None:
        raise ConfigurationError(
            f"{model} has no template: it reads two texts as its tokenizer joins them, which every server does."
        )
    typer.echo(serving_format(Template.of(template).to_dict()), nl=False)
