"""One function a tool: it reads a model's folder as the tool's users do, and scores the pairs.

    python recipes/interop/readers.py READER FOLDER

runs in the tool's own environment, where this package isn't installed, and writes FOLDER/results/READER.json.
`matrix.py` calls it for every tool. Each function is the snippet that gives our scores, or as near to them as the tool
comes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Pairs = list[tuple[str, str]]
Scores = Any
"""[P] numbers, or [P, C] for several labels."""


def by_query(pairs: Pairs) -> Iterator[tuple[str, list[str]]]:
    """Each query with its documents, in the order of the pairs."""
    for query in dict.fromkeys(query for query, _ in pairs):
        yield query, [document for other, document in pairs if other == query]


def _said(folder: str, name: str) -> dict[str, Any]:
    """What a file of a folder says."""
    return dict(json.loads(Path(folder, name).read_text()))


# -- transformers ------------------------------------------------------------------------------------------------------


def automodel(folder: str, pairs: Pairs) -> Scores:
    """Logits of one pair at a time, without padding. Lists, because an empty second text outside of one is dropped."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [tokenizer([first], [second], truncation=True, return_tensors="pt") for first, second in pairs]
        logits = torch.cat([model(**row).logits for row in rows])
    return logits.squeeze(-1).tolist()


def pipeline(folder: str, pairs: Pairs) -> Scores:
    """Sigmoid, softmax or nothing, by `problem_type`."""
    from transformers import pipeline as make_pipeline

    classify = make_pipeline("text-classification", folder, top_k=None, truncation=True, device="cpu")
    results = classify([{"text": first, "text_pair": second} for first, second in pairs], batch_size=8)
    order = [classify.model.config.id2label[index] for index in range(classify.model.config.num_labels)]
    rows = [{entry["label"]: entry["score"] for entry in result} for result in results]
    return [[row[label] for label in order] if len(order) > 1 else row[order[0]] for row in rows]


# -- sentence-transformers ---------------------------------------------------------------------------------------------


def sentence_transformers(folder: str, pairs: Pairs, backend: str = "torch") -> Scores:
    """Scores, by the activation that the folder names."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(folder, device="cpu", backend=backend).predict(pairs, show_progress_bar=False).tolist()


def sentence_transformers_onnx(folder: str, pairs: Pairs) -> Scores:
    """The same, by the folder's onnx/model.onnx."""
    return sentence_transformers(folder, pairs, "onnx")


# -- this package ------------------------------------------------------------------------------------------------------


def ours(folder: str, pairs: Pairs) -> Scores:
    """The folder, loaded again."""
    from cross_trainer import CrossEncoder

    return CrossEncoder(folder, device="cpu").predict(pairs).tolist()


def score(folder: str, pairs: Pairs) -> Scores:
    """The command line, from one file to another."""
    from cross_trainer.commands.cli import app

    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place, "pairs.jsonl"), Path(place, "scored.jsonl")
        source.write_text("".join(json.dumps({"query": first, "document": second}) + "\n" for first, second in pairs))
        if code := app(["score", str(source), "-o", str(target), "--model", folder], standalone_mode=False):
            raise RuntimeError(f"exit code {code}")
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    values = [[value for name, value in row.items() if name not in {"query", "document"}] for row in rows]
    return [row[0] if len(row) == 1 else row for row in values]


# -- runtimes ----------------------------------------------------------------------------------------------------------


def _tokens(folder: str, pairs: Pairs) -> dict[str, Any]:
    """What tokenizer.json and tokenizer_config.json make of pairs, as arrays [P, L]."""
    import numpy as np
    from tokenizers import Tokenizer

    said = _said(folder, "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(said["model_max_length"])
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(said["pad_token"]), pad_token=said["pad_token"])
    rows = tokenizer.encode_batch(pairs)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(row, key) for row in rows]) for name, key in columns.items()}


def onnxruntime(folder: str, pairs: Pairs) -> Scores:
    """Logits of onnx/model.onnx."""
    import onnxruntime as ort

    session = ort.InferenceSession(f"{folder}/onnx/model.onnx", providers=["CPUExecutionProvider"])
    tokens = _tokens(folder, pairs)
    (logits,) = session.run(["logits"], {entry.name: tokens[entry.name] for entry in session.get_inputs()})
    return logits.squeeze(-1).tolist() if logits.shape[-1] == 1 else logits.tolist()


def openvino(folder: str, pairs: Pairs) -> Scores:
    """Logits of openvino/openvino_model.xml."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # on AMX it chooses bfloat16
    model = ov.Core().compile_model(f"{folder}/openvino/openvino_model.xml", "CPU", settings)
    tokens = _tokens(folder, pairs)
    logits = model({name: tokens[name] for entry in model.inputs for name in entry.names if name in tokens})[0]
    return logits.squeeze(-1).tolist() if logits.shape[-1] == 1 else logits.tolist()


# -- rerankers ---------------------------------------------------------------------------------------------------------


def langchain(folder: str, pairs: Pairs) -> Scores:
    """Scores: it hands pairs to sentence-transformers. Of several labels, it keeps the second alone."""
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    scores = HuggingFaceCrossEncoder(model_name=folder, model_kwargs={"device": "cpu"}).score(pairs)
    return [float(value) for value in scores]


def llama_index(folder: str, pairs: Pairs) -> Scores:
    """Scores: it hands pairs to sentence-transformers, which reads 512 tokens if not told otherwise."""
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    limit = {"max_length": _said(folder, "tokenizer_config.json")["model_max_length"]}
    reranker = SentenceTransformerRerank(model=folder, top_n=len(pairs), device="cpu", cross_encoder_kwargs=limit)
    scores = []
    for query, documents in by_query(pairs):
        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(documents)]
        found = reranker.postprocess_nodes(nodes, QueryBundle(query))
        scores += [node.score for node in sorted(found, key=lambda node: int(node.node.id_))]
    return [float(value) for value in scores]


def haystack(folder: str, pairs: Pairs) -> Scores:
    """Logits, because its own default is a sigmoid whatever a folder names."""
    from haystack import Document
    from haystack_integrations.components.rankers.sentence_transformers import SentenceTransformersSimilarityRanker

    ranker = SentenceTransformersSimilarityRanker(model=folder, top_k=len(pairs), scale_score=False)
    scores = []
    for query, documents in by_query(pairs):
        known = [Document(id=str(index), content=text) for index, text in enumerate(documents)]
        found = ranker.run(query=query, documents=known)["documents"]
        scores += [document.score for document in sorted(found, key=lambda document: int(document.id))]
    return scores


def rerankers(folder: str, pairs: Pairs) -> Scores:
    """Logits."""
    from rerankers import Reranker

    ranker = Reranker(folder, model_type="cross-encoder", device="cpu", dtype="float32", verbose=0)
    scores = []
    for query, documents in by_query(pairs):
        found = ranker.rank(query, documents, doc_ids=list(range(len(documents)))).results
        scores += [result.score for result in sorted(found, key=lambda result: result.document.doc_id)]
    return scores


def infinity(folder: str, pairs: Pairs) -> Scores:
    """Logits, because its own default is a sigmoid whatever a folder names."""
    from infinity_emb import EngineArgs, SyncEngineArray

    settings = EngineArgs(
        model_name_or_path=folder,
        served_model_name="model",
        device="cpu",
        dtype="float32",
        bettertransformer=False,
        model_warmup=False,
    )
    engine, scores = SyncEngineArray.from_args([settings]), []
    for query, documents in by_query(pairs):
        found, _ = engine.rerank(model="model", query=query, docs=documents, raw_scores=True).result()
        scores += [float(entry.relevance_score) for entry in sorted(found, key=lambda entry: entry.index)]
    engine.stop()
    return scores


def fastembed(folder: str, pairs: Pairs) -> Scores:
    """Logits of onnx/model.onnx."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model(model=folder, sources=ModelSource(url="local"))
    return list(TextCrossEncoder(folder, specific_model_path=folder).rerank_pairs(pairs))


def flashrank(folder: str, pairs: Pairs) -> Scores:
    """A sigmoid of one logit, of onnx/model.onnx."""
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    path = Path(folder)
    model_file_map[path.name] = "onnx/model.onnx"
    ranker = Ranker(path.name, cache_dir=str(path.parent))
    scores = []
    for query, documents in by_query(pairs):
        found = ranker.rerank(RerankRequest(query, [{"id": i, "text": text} for i, text in enumerate(documents)]))
        scores += [float(entry["score"]) for entry in sorted(found, key=lambda entry: entry["id"])]
    return scores


# -- servers, by the files that they read ------------------------------------------------------------------------------


def _activated(folder: str, pairs: Pairs, raw: bool = False) -> Scores:
    """Logits, or a sigmoid of one label and a softmax of more, as servers for rankings and classes make scores."""
    import torch

    logits = torch.tensor(automodel(folder, pairs))
    return (logits if raw else logits.sigmoid() if logits.ndim == 1 else logits.softmax(-1)).tolist()


def text_embeddings_inference(folder: str, pairs: Pairs) -> Scores:
    """What it would answer without `raw_scores`, if it finds all that it asks of a folder."""
    from tokenizers import Tokenizer

    config = _said(folder, "config.json")
    if not any(name.endswith("Classification") for name in config["architectures"]):
        raise ValueError(f"architectures={config['architectures']}")
    if len(config["id2label"]) != len(config["label2id"]) or not config["max_position_embeddings"]:
        raise ValueError("labels or positions are missing")
    Tokenizer.from_file(f"{folder}/tokenizer.json")
    lengths = [_said(folder, name) for name in ("sentence_bert_config.json", "tokenizer_config.json")]
    if lengths[0]["max_seq_length"] != lengths[1]["model_max_length"]:
        raise ValueError("it would cut pairs at another length")
    return _activated(folder, pairs)


def vllm(folder: str, pairs: Pairs) -> Scores:
    """What /score, or /classify for several labels, would answer by the activation or the kind of problem named."""
    config = _said(folder, "config.json")
    if not {"max_seq_length", "do_lower_case"} <= set(_said(folder, "sentence_bert_config.json")):
        raise ValueError("sentence_bert_config.json is passed over")
    named = config["sentence_transformers"]["activation_fn"]
    if named != config["sbert_ce_default_activation_function"] or not named.startswith("torch.nn.modules."):
        raise ValueError(f"activation_fn={named}")
    if config.get("problem_type") == "multi_label_classification":
        import torch

        return torch.tensor(automodel(folder, pairs)).sigmoid().tolist()
    return _activated(folder, pairs, raw=named.endswith("Identity"))


# -- the run -----------------------------------------------------------------------------------------------------------

READERS: dict[str, tuple[Callable[[str, Pairs], Scores], str | None]] = {
    "automodel": (automodel, "transformers"),
    "automodel_4": (automodel, "transformers"),
    "pipeline": (pipeline, "transformers"),
    "sentence_transformers": (sentence_transformers, "sentence-transformers"),
    "sentence_transformers_5": (sentence_transformers, "sentence-transformers"),
    "sentence_transformers_onnx": (sentence_transformers_onnx, "sentence-transformers"),
    "ours": (ours, "cross-trainer"),
    "score": (score, "cross-trainer"),
    "text_embeddings_inference": (text_embeddings_inference, None),
    "vllm": (vllm, None),
    "onnxruntime": (onnxruntime, "onnxruntime"),
    "openvino": (openvino, "openvino"),
    "langchain": (langchain, "langchain-community"),
    "llama_index": (llama_index, "llama-index-postprocessor-sbert-rerank"),
    "haystack": (haystack, "sentence-transformers-haystack"),
    "rerankers": (rerankers, "rerankers"),
    "fastembed": (fastembed, "fastembed"),
    "flashrank": (flashrank, "flashrank"),
    "infinity": (infinity, "infinity-emb"),
}
"""Each reader's function, and the package whose version is told; None where the tool itself doesn't run."""


def attempt(read: Callable[[str, Pairs], Scores], folder: Path, pairs: Pairs) -> dict[str, Any]:
    """The scores, or the error: what a tool doesn't read is a result too."""
    try:
        return {"scores": read(str(folder.resolve()), pairs)}
    except Exception as error:
        text = " ".join(str(error).split()).replace(str(folder.resolve()), "FOLDER")
        return {"error": f"{type(error).__name__}: {text[:120]}"}


def main(reader: str, root: Path) -> None:
    """Score the pairs with every folder."""
    read, package = READERS[reader]
    pairs = [(query, document) for query, document, _ in json.loads((root / "pairs.json").read_text())]
    folders = sorted(path.parent for path in root.glob("*/modules.json"))
    kinds = {folder.name: attempt(read, folder, pairs) for folder in folders}
    result = {"version": importlib.metadata.version(package) if package else "", "kinds": kinds}
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / f"{reader}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1], Path(sys.argv[2]))
