"""How a saved model is used, for its card: code to copy, and the scores of a few pairs below it.

usage = Usage(pairs, scores=[0.87, 0.03], results=pipeline_results(model, tokenizer, pairs))
usage_section(usage, "somebody/duplicates", num_labels=1, activation="sigmoid")
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NEUTRAL_PAIRS = (
    ("How do I reset my password?", "I forgot my password."),
    ("How do I reset my password?", "Bills are sent at the end of the month."),
)
"""What a card shows scores of where it may not show rows of a data set."""


@dataclass(frozen=True)
class Usage:
    """Pairs, and what they were given when the model was saved.

    Attributes:
        pairs: Texts that may be shown.
        scores: By this package: one number for each pair, or one for each class.
        results: By transformers' pipeline: {label: score} for each pair, best first.
    """

    pairs: Sequence[tuple[str, ...]] = NEUTRAL_PAIRS
    scores: Sequence[Any] | None = None
    results: Sequence[Mapping[str, float]] | None = None


def pipeline_results(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, ...]], max_length: int | None = None
) -> list[dict[str, float]]:
    """What transformers' pipeline gives pairs, with a model that is loaded: {label: score}, best first."""
    from transformers import pipeline

    training = model.training
    classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, device=model.device)
    model.eval()
    limit = {} if max_length is None else {"max_length": max_length}  # as the saved tokenizer has it
    found = classify([{"text": a, "text_pair": b} for a, b in pairs], truncation=True, top_k=None, **limit)
    model.train(training)
    return [{entry["label"]: float(entry["score"]) for entry in each} for each in found]


def usage_section(
    usage: Usage,
    address: str,
    num_labels: int,
    activation: str,
    is_adapter: bool = False,
    serving: str | None = None,
) -> str:
    """The section of a card.

    Args:
        usage: Pairs and scores.
        address: Where the model can be loaded from.
        num_labels: C.
        activation: What makes scores of logits, by its short name.
        is_adapter: Whether the folder holds an adapter alone, which other tools read in ways of their own.
        serving: How pairs become texts for tools that don't read the model's template; None where it has none.
    """
    listed = "".join(map(_listed, usage.pairs))
    pairs = f"pairs = [\n{listed}]"
    predict = f"model = CrossEncoder({_quoted(address)})\n{pairs}\nprint(model.predict(pairs).round(4).tolist())"
    scores = None if usage.scores is None else _output(str([_rounded(score) for score in usage.scores]))
    parts = [
        "## Usage",
        _told(usage, is_adapter),
        "### cross_trainer",
        _code("bash", "pip install cross-trainer"),
        _code("python", f"from cross_trainer import CrossEncoder\n\n{predict}"),
        scores,
    ]
    if not is_adapter:
        parts += ["### sentence-transformers"]
        parts += [_code("python", f"from sentence_transformers import CrossEncoder\n\n{predict}"), scores]
    if serving is not None:
        parts += ["### Servers", serving.rstrip()]
    elif not is_adapter:
        parts += ["### transformers", _code("python", _pipeline_code(address, pairs)), _results(usage)]
        parts += _servers(usage, address, num_labels, activation)
    return "\n\n".join(part for part in parts if part)


def _told(usage: Usage, is_adapter: bool) -> str:
    if usage.scores is None:
        return ""
    own = "The model itself gave these numbers when it was saved"
    if usage.results is None or is_adapter:
        return f"{own}."
    return (
        f"{own}, in this package and in transformers' pipeline. sentence-transformers reads the same files. The "
        "commands for servers were not run."
    )


def _results(usage: Usage) -> str:
    if usage.results is None:
        return ""
    lines = [str({label: _rounded(score) for label, score in each.items()}) for each in usage.results]
    return _output("\n".join(lines))


def _pipeline_code(address: str, pairs: str) -> str:
    return f"""from transformers import pipeline

classify = pipeline("text-classification", {_quoted(address)})
{pairs}
inputs = [{{"text": first, "text_pair": second}} for first, second in pairs]
for result in classify(inputs, truncation=True, top_k=None):
    print({{entry["label"]: round(entry["score"], 4) for entry in result}})"""


def _servers(usage: Usage, address: str, num_labels: int, activation: str) -> Iterator[str]:
    """Commands for text-embeddings-inference, and for vLLM, which scores pairs with one label only."""
    raw = {"raw_scores": True} if activation == "identity" else {}
    start = f"text-embeddings-router --model-id {address} --port 8080"
    yield "### text-embeddings-inference"
    if num_labels > 1:
        body = {"inputs": [list(pair) for pair in usage.pairs], **raw}
        yield _code("bash", f"{start}\n{_curl('8080/predict', body)}")
        return
    query = usage.pairs[0][0]
    texts = [second for first, second in usage.pairs if first == query]
    yield _code("bash", f"{start}\n{_curl('8080/rerank', {'query': query, 'texts': texts, **raw})}")
    yield "### vLLM"
    body = {"model": address, "text_1": query, "text_2": texts}
    yield _code("bash", f"vllm serve {address} --port 8000\n{_curl('8000/score', body)}")


def _curl(where: str, body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"curl 127.0.0.1:{where} -H 'Content-Type: application/json' \\\n  -d '{text}'"


def _listed(pair: tuple[str, ...]) -> str:
    """A pair as an entry of a list, over several lines where one is too long to read."""
    first, second = map(_quoted, pair)
    line = f"    ({first}, {second}),\n"
    return line if len(line) <= 88 else f"    (\n        {first},\n        {second},\n    ),\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _rounded(score: Any) -> Any:
    """A score, or the scores of a pair, to 4 digits."""
    if isinstance(score, Sequence):
        return [_rounded(each) for each in score]
    return round(float(score), 4)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _output(text: str) -> str:
    return _code("text", text)
