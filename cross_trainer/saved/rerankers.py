"""Rerankers that answer with a word: causal language models as plain classifiers, and back.

    model = to_classifier(causal, answers=(9693, 2152))       # the tokens "yes" and "no"
    causal = to_causal(model, answers=(9693, 2152))

Such a model reads a query and a document in a prompt, and its score is `logit(yes) - logit(no)` of the next token, or
`logit(yes)` alone. That is a linear function of the last hidden state, whose weight is the difference of two rows of
the language-model head. So the model is an `AutoModelForSequenceClassification` of one label, exactly, and everything
that works on classifiers works on it: training, padding-free execution, adapters, export.

The rules of published models are known by name (`PUBLISHED`), or read from sentence-transformers' `LogitScore` folders.

Shapes: P pairs, H hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cross_trainer.errors import ConfigurationError, UnsupportedModelError
from cross_trainer.internals import keep_weight_conversions
from cross_trainer.saved.folder import READING, position_limit

Answers: TypeAlias = "Sequence[str | int]"


@dataclass(frozen=True)
class Published:
    """The rule by which a published model scores a pair.

    Attributes:
        tokens: The answer that counts for a pair, and the one that counts against it, if any.
        template: The name of its template, see `cross_trainer.data.templates`.
        max_length: Tokens of a pair at most; None for the model's own limit.
        raw: Whether its scores are logits rather than probabilities.
    """

    tokens: tuple[str, ...]
    template: str
    max_length: int | None = None
    raw: bool = False


PUBLISHED = {
    r"qwen3-reranker-[\d.]+b": Published(("yes", "no"), "qwen3-reranker", 8192),
    r"mxbai-rerank-(base|large)-v2": Published(("1", "0"), "mxbai-rerank-v2", 8192),
    r"bge-reranker-v2-gemma": Published(("Yes",), "bge-reranker-v2-gemma", raw=True),
}
"""Rules by the name of a model, without its owner and case."""


def published(name: str) -> Published | None:
    """The rule of a published model, by the last part of its name or of its folder's.

    >>> published("Qwen/Qwen3-Reranker-0.6B").tokens
    ('yes', 'no')
    """
    last = re.split(r"[\\/]", name.rstrip("\\/"))[-1].lower()
    return next((rule for pattern, rule in PUBLISHED.items() if re.fullmatch(pattern, last)), None)


def published_length(name: str, config: Any) -> int | None:
    """Tokens of a pair at most that a published model is used with, as far as it has positions; None for others."""
    rule, limit = published(name), position_limit(config)
    if rule is None or rule.max_length is None:
        return None
    return rule.max_length if limit is None else min(rule.max_length, limit)


def is_causal(config: Any) -> bool:
    """Whether a config is a causal language model's, as far as it says."""
    return any(architecture.endswith("ForCausalLM") for architecture in config.architectures or ())


def is_reranker(config: Any) -> bool:
    """Whether a config is a causal language model's that says what it answers with."""
    return is_causal(config) and bool(saved_answers(config))


def saved_answers(config: Any) -> tuple[int, ...]:
    """The tokens whose logits make the score of a model that is or was a causal one; none where it never was."""
    return tuple((getattr(config, READING, None) or {}).get("answers", ()))


def describe_answers(config: Any, answers: Sequence[int]) -> None:
    """Write into a config the ids of the one or two tokens that a causal language model answers with."""
    setattr(config, READING, {**(getattr(config, READING, None) or {}), "answers": list(answers)})


def find_answers(tokenizer: Any, tokens: Answers) -> tuple[int, ...]:
    """The ids of the tokens that a model answers with.

    Args:
        tokenizer: The model's.
        tokens: One or two of them: entries of the vocabulary, texts that are one token, or ids.

    Raises:
        ConfigurationError: There are none or more than two, or one isn't a token; the message names it.
    """
    if isinstance(tokens, str) or not 1 <= len(tokens) <= 2:
        raise ConfigurationError(
            f'tokens={tokens!r}: expected the answer for a pair and the one against it, such as ("yes", "no"), or the '
            'first alone, such as ("Yes",).'
        )
    found = tuple(_token_id(tokenizer, token) for token in tokens)
    if len(set(found)) < len(found):
        raise ConfigurationError(f"tokens={tokens!r} are the same token {found[0]}, so that every score would be 0.")
    return found


def _token_id(tokenizer: Any, token: str | int) -> int:
    if isinstance(token, int):
        if not 0 <= token < len(tokenizer):
            raise ConfigurationError(f"The tokenizer has {len(tokenizer)} tokens, and none with the id {token}.")
        return token
    known = tokenizer.convert_tokens_to_ids(token)
    if known is not None and (known != tokenizer.unk_token_id or token == tokenizer.unk_token):
        return int(known)
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigurationError(
            f"The answer {token!r} is no single token of the tokenizer: it is cut into "
            f"{tokenizer.convert_ids_to_tokens(ids)}. Name tokens of its vocabulary, with tokens=(..., ...)."
        )
    return int(ids[0])


# -- conversion --------------------------------------------------------------------------------------------------------


def to_classifier(model: Any, answers: Sequence[int]) -> Any:
    """A causal language model as a classifier of one label, whose logit is the difference of its answers' logits.

    The difference of the two rows is taken in float32 and rounded once, to the precision of the weights.

    Args:
        model: A causal language model of transformers. Its transformer becomes the classifier's.
        answers: The token that counts for a pair, and the one that counts against it, if any.

    Returns:
        The family's own `...ForSequenceClassification`.

    Raises:
        UnsupportedModelError: The logits of the family aren't a linear function of its last hidden state, or it has no
            classifier that reads that state as it is.
    """
    family = type(model).__name__
    head = model.get_output_embeddings()
    check_family(model.config)
    if type(head) is not nn.Linear:
        raise UnsupportedModelError(
            f"{family} can't become a classifier: its language-model head is {type(head).__name__}, not a linear layer."
        )
    bias = 0.0 if head.bias is None else (_row(head.bias, answers)).item()
    if bias:
        raise UnsupportedModelError(
            f"{family} can't become a classifier: its answers differ by {bias:g} in bias, and the classifier has none."
        )
    classifier = _empty_classifier(model)
    weight = _row(head.weight, answers).to(head.weight.dtype)[None]
    score = nn.Linear(weight.shape[1], 1, bias=False, device="meta")
    score.weight = nn.Parameter(weight)
    classifier.score = score
    keep_weight_conversions(model, classifier)
    classifier.train(model.training)
    _check_equal(model, classifier, answers)
    return classifier


def _row(values: Tensor, answers: Sequence[int]) -> Tensor:
    """What belongs to the first answer minus what belongs to the second, in float32."""
    rows = values.detach()[list(answers)].float()
    return rows[0] - rows[1] if len(answers) == 2 else rows[0]


def check_family(config: Any) -> None:
    """Check by its config that a causal language model can become a classifier.

    Raises:
        UnsupportedModelError: It can't; the message names its type and says why.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    reason = None
    if getattr(config.get_text_config(), "final_logit_softcapping", None):
        reason = "final_logit_softcapping bends its logits, so that they aren't a linear function of the hidden state"
    elif type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        reason = "transformers has no sequence classifier of this type"
    if reason is not None:
        raise UnsupportedModelError(f"A {config.model_type} can't become a classifier: {reason}.")


def _empty_classifier(model: Any) -> Any:
    """The family's classifier over a causal model's transformer and config, without a head."""
    from transformers import AutoModelForSequenceClassification

    config = model.config
    config.num_labels = 1
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    base = classifier.base_model_prefix
    if {name for name, _ in classifier.named_children()} != {base, "score"} or type(model.base_model) is not type(
        classifier.base_model
    ):
        raise UnsupportedModelError(
            f"{type(model).__name__} can't become a classifier: {type(classifier).__name__} isn't one linear layer "
            "over the same transformer."
        )
    setattr(classifier, base, model.base_model)
    config.architectures = [type(classifier).__name__]
    classifier.config = config
    return classifier


@torch.no_grad()
def _check_equal(model: Any, classifier: Any, answers: Sequence[int]) -> None:
    """Check on a few tokens that a classifier gives what the causal model does, whatever the family does to its logits.

    Raises:
        UnsupportedModelError: It doesn't.
    """
    was_training, text = model.training, model.config.get_text_config()
    padding = 0 if text.pad_token_id is None else text.pad_token_id
    ids = torch.arange(1, 13, device=classifier.score.weight.device).reshape(2, 6)
    ids[ids == padding] += 13
    ids[1, 4:] = padding
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    before = text.pad_token_id
    text.pad_token_id = padding
    model.eval()
    classifier.eval()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[[0, 1], [5, 3]].float()
    expected = logits[:, answers[0]] - (logits[:, answers[1]] if len(answers) == 2 else 0)
    found = classifier(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float()
    text.pad_token_id = before
    model.train(was_training)
    classifier.train(was_training)
    size = logits[:, list(answers)].abs().amax()
    tolerance = (1e-3 if classifier.dtype == torch.float32 else 0.05) * size + 1e-5
    if not torch.allclose(found, expected, rtol=0, atol=float(tolerance)):
        raise UnsupportedModelError(
            f"{type(model).__name__} can't become a classifier: its logits differ by {expected.tolist()} where "
            f"{type(classifier).__name__} gives {found.tolist()}."
        )


def to_causal(model: Any, answers: Sequence[int]) -> Any:
    """A classifier that was a causal language model as one again, with the same scores.

    Where the head is still the difference of two rows of the embeddings, to which the family ties its language-model
    head, the model is what it was. Otherwise the new head isn't tied, and is zero but for the row of the first answer:
    that is exact in every precision, and the embeddings, which the prompt's own words are read by, stay.

    Args:
        model: The classifier, of one label.
        answers: As for `to_classifier`.

    Raises:
        UnsupportedModelError: It isn't a linear layer over the transformer of a causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    score = getattr(model, "score", None)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(score) is not nn.Linear or score.out_features != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't become a causal language model: expected a linear layer of one output, "
            "called score, over the transformer of one."
        )
    weight, embedded = score.weight.detach(), model.get_input_embeddings().weight.detach()
    tied = config.tie_word_embeddings and torch.equal(weight[0], _row(embedded, answers).to(weight.dtype))
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        causal: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    setattr(causal, causal.base_model_prefix, copy.copy(model.base_model))
    causal.base_model.config = config
    head = nn.Linear(weight.shape[1], len(embedded), bias=False, device="meta")
    head.weight = nn.Parameter(embedded if tied else torch.zeros_like(embedded))
    if not tied:
        head.weight.data[answers[0]] = weight[0]
    else:
        head.weight = model.get_input_embeddings().weight
    causal.set_output_embeddings(head)
    for key in ("id2label", "label2id", "problem_type"):
        vars(config).pop(key, None)
    config.architectures = [type(causal).__name__]
    causal.config = config
    keep_weight_conversions(model, causal)
    return causal.eval()
