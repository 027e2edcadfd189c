"""First stages of search: BM25, vectors of a bi-encoder, and both fused, over a corpus of texts.

    find = start_retriever("bm25", texts)                                       # of the extra `mining`
    find = start_retriever(DenseRetriever("all-MiniLM-L6-v2"), texts)           # of the extra `dense`
    find = start_retriever(HybridRetriever(("bm25", DenseRetriever(encode))), texts)
    find(["how to boil an egg"], 100)                       # for each query [(index, score), ...], best first

A retriever that is started is a callable on (Q queries, k). The scores of a query's k best documents are all that is
kept: scores of all documents exist for one query, or one block of documents, at a time.

Q queries, N documents, B documents of a block, H size of a vector.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cross_trainer.errors import ConfigurationError, DataError, MissingDependencyError, check_whole

logger = logging.getLogger(__name__)

Hits: TypeAlias = "list[list[tuple[int, float]]]"
"""For each query the indices and scores of documents, best first."""

Retriever: TypeAlias = Callable[[list[str], int], Sequence[Sequence[Any]]]
Floats: TypeAlias = "NDArray[np.float32]"

ENCODED_AT_ONCE = 1024  # texts
BLOCK = 16_384  # documents whose scores are computed together
QUERIES_AT_ONCE = 256
FEWEST = 39  # documents by which faiss wants to find a cluster
LARGE = 1_000_000  # documents from which on an index is worth what it misses


def start_retriever(retriever: Any, texts: Iterable[str]) -> Retriever:
    """A retriever over a corpus, which is read once.

        >>> find = start_retriever("bm25", ["boil an egg", "fly a kite", "an egg"])
        >>> [index for index, score in find(["boil eggs or an egg"], 2)[0]]
        [0, 2]

    Args:
        retriever: As `named_retriever` takes it, or a callable on (queries, k), for which the texts are only read.
        texts: The corpus.

    Raises:
        ConfigurationError: It isn't a retriever.
        DataError: No document has a word that BM25 could find.
        MissingDependencyError: What it needs isn't installed.
    """
    chosen = _chosen(retriever)
    check_retriever(chosen)
    if chosen == "bm25":
        found = Bm25(texts)
        if not found.has_words:
            raise DataError(
                "The corpus has no word that BM25 could find: no two letters or digits in a row outside of English "
                "stop words. Pass a retriever of your own."
            )
        return found
    if isinstance(chosen, DenseRetriever | HybridRetriever):
        return chosen.over(texts)
    for _ in texts:  # are checked as they are read
        pass
    started: Retriever = chosen
    return started


def named_retriever(name: str) -> Literal["bm25"] | DenseRetriever | HybridRetriever:
    """The retriever of a name: "bm25", a bi-encoder's, or "bm25+" and a bi-encoder's for both fused.

    >>> named_retriever("bm25+all-MiniLM-L6-v2").retrievers
    ('bm25', DenseRetriever(encoder='all-MiniLM-L6-v2', index=None, batch_size=32))
    """
    if name == "bm25":
        return "bm25"
    if name.startswith("bm25+"):
        return HybridRetriever(("bm25", DenseRetriever(name.removeprefix("bm25+"))))
    return DenseRetriever(name)


def check_retriever(retriever: Any) -> None:
    """Refuse what is no retriever, and what can't be started because a package is missing.

    Raises:
        ConfigurationError: It is neither a name nor a callable.
        MissingDependencyError: What it needs isn't installed.
    """
    chosen = _chosen(retriever)
    if chosen == "bm25":
        import_bm25s()
    elif isinstance(chosen, HybridRetriever):
        for part in chosen.retrievers:
            check_retriever(part)
    elif isinstance(chosen, DenseRetriever):
        if isinstance(chosen.encoder, str):
            _import("sentence_transformers", f"The bi-encoder {chosen.encoder!r}")
        if chosen.index == "faiss":
            _import("faiss", "index='faiss'")
    elif not callable(chosen):
        raise ConfigurationError(
            f"retriever={chosen!r}: expected 'bm25', the name of a SentenceTransformer, 'bm25+' and such a name, a "
            "DenseRetriever, a HybridRetriever or a callable (queries, k)."
        )


def _chosen(retriever: Any) -> Any:
    if isinstance(retriever, str):
        return named_retriever(retriever)
    return DenseRetriever(retriever) if hasattr(retriever, "encode_query") else retriever


def read_hits(answer: Any, queries: int, documents: int) -> list[list[int]]:
    """What a retriever returned, as one list of indices a query.

    Raises:
        DataError: It isn't that, or an index lies outside the corpus.
    """
    try:
        rows = [[operator.index(_first(entry)) for entry in row] for row in answer]
    except (TypeError, IndexError) as error:
        raise DataError(
            f"The retriever returned {answer!r:.200}. Expected for each query a list of indices into the corpus, or of "
            f"tuples that start with one ({error})."
        ) from error
    if len(rows) != queries:
        raise DataError(
            f"The retriever returned {len(rows)} lists for {queries} queries. Return one for each, empty where nothing "
            "is found."
        )
    for row in rows:
        for index in row:
            if not 0 <= index < documents:
                raise DataError(
                    f"The retriever returned the index {index}, and the corpus has {documents} documents. Count from "
                    "0, and leave out what only fills a list up (-1 in FAISS)."
                )
    return rows


def _first(entry: Any) -> Any:
    return entry[0] if isinstance(entry, tuple | list) else entry


def _import(module: str, asked_by: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{asked_by} needs {module}: pip install 'cross-trainer[dense]'. Or pass a retriever of your own."
        ) from error


# -- words -------------------------------------------------------------------------------------------------------------


def import_bm25s(asked_by: str = "retriever='bm25'", instead: str = "pass a retriever of your own") -> Any:
    """The module bm25s; a message names what asked for it, and what to do without.

    Raises:
        MissingDependencyError: It isn't installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise MissingDependencyError(
            f"{asked_by} needs bm25s: pip install 'cross-trainer[mining]'. Or {instead}."
        ) from error
    return bm25s


class Bm25:
    """BM25 over all words of a query. Of equal scores the document that comes first in the corpus wins, whatever is
    installed.

    Attributes:
        has_words: Whether any document has a word that could be found.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._bm25s = import_bm25s()
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets a lower one when it is imported
        tokens = self._bm25s.tokenize(texts, show_progress=False)
        self.has_words = bool(tokens.vocab)
        self._documents = len(tokens.ids)
        self._index = self._bm25s.BM25()
        if self.has_words:
            self._index.index(tokens, create_empty_token=False, show_progress=False)

    def scores(self, queries: list[str]) -> Iterator[NDArray[Any]]:
        """For each query the scores [N] of all documents, 0 for those without a word of it."""
        for words in self._bm25s.tokenize(queries, return_ids=False, show_progress=False):
            yield self._index.get_scores(words) if words and self.has_words else np.zeros(self._documents)

    def __call__(self, queries: list[str], k: int) -> Hits:
        """For each query the k best documents that have a word of it, best first."""
        return [
            _best(scores, found, k)
            for scores in self.scores(queries)
            for found in [np.flatnonzero(scores > 0)]  # the others have no word in common
        ]


def _best(scores: NDArray[Any], found: NDArray[np.intp], k: int) -> list[tuple[int, float]]:
    """The k highest of scores [N] at the indices `found`, in rising order, best first and equal ones by index."""
    if len(found) > k:
        edge = np.partition(scores[found], -k)[-k]
        found = found[scores[found] >= edge]
    found = found[np.argsort(-scores[found], kind="stable")[:k]]
    return list(zip(found.tolist(), scores[found].tolist(), strict=True))


# -- vectors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseRetriever:
    """Documents whose vectors have the highest products with a query's: those of a bi-encoder.

        >>> retriever = DenseRetriever(lambda texts: [[text.count("egg"), text.count("kite")] for text in texts])
        >>> retriever.over(["fly a kite", "boil an egg", "eggs and egg"])(["an egg"], 2)
        [[(2, 2.0), (1, 1.0)]]

    The vectors of all documents are kept in memory, 4 bytes a number: 1.5 GB for a million of size 384.

    Args:
        encoder: The name or folder of a SentenceTransformer (extra `dense`), a loaded one, or a callable from a list of
            n texts to vectors [n, H]. A SentenceTransformer's own prompts are put before queries and documents, and
            vectors are made as long as its similarity wants them.
        index: "exact" compares a query with all documents, a block at a time. "faiss" builds an index, whose search is
            faster and may miss some: from 25,000 documents on, it looks at those near the query alone. Default: exact
            below a million documents, then faiss where it is installed.
        batch_size: Texts that a SentenceTransformer encodes together.
    """

    encoder: Any
    index: Literal["exact", "faiss"] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size)
        if self.index not in {None, "exact", "faiss"}:
            raise ConfigurationError(f"index={self.index!r}: expected 'exact', 'faiss' or None.")
        if not isinstance(self.encoder, str) and not callable(self.encoder):
            raise ConfigurationError(
                f"encoder={self.encoder!r}: expected the name of a SentenceTransformer or a callable (texts)."
            )

    def over(self, texts: Iterable[str]) -> Retriever:
        """A callable on (queries, k) that searches a corpus, all of whose documents are encoded.

        Raises:
            ConfigurationError: There is no such SentenceTransformer.
            DataError: The encoder returned something else than vectors.
            MissingDependencyError: What it needs isn't installed.
        """
        check_retriever(self)
        encode_queries, encode_documents = self._encoders()
        blocks = list(_blocks(_encoded(texts, encode_documents)))
        search = _ExactIndex(blocks) if self._compares_all(sum(map(len, blocks))) else _faiss_index(blocks)

        def find(queries: list[str], k: int) -> Hits:
            parts = (queries[start : start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE))
            return [row for part in parts for row in search(next(_encoded(part, encode_queries)), k)]

        return find

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Products [P] of the vectors of P pairs of a query and a document: a scorer for `mine_hard_negatives`."""
        encoded = []
        for texts, encode in zip(zip(*pairs, strict=True), self._encoders(), strict=True):
            places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
            vectors = np.concatenate(list(_encoded(places, encode)))
            encoded.append(vectors[[places[text] for text in texts]])
        return np.asarray(np.einsum("ph,ph->p", *encoded))

    def _compares_all(self, documents: int) -> bool:
        if self.index is not None:
            return self.index == "exact"
        if documents < LARGE:
            return True
        has_faiss = importlib.util.find_spec("faiss") is not None
        logger.info(
            "%d documents are searched %s.", documents, "through faiss" if has_faiss else "one by one: no faiss"
        )
        return not has_faiss

    def _encoders(self) -> tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]:
        """What makes vectors of queries, and of documents."""
        model = _load_bi_encoder(self.encoder) if isinstance(self.encoder, str) else self.encoder
        if not hasattr(model, "encode_query"):
            return model, model
        options = {
            "batch_size": self.batch_size,
            "show_progress_bar": False,
            "normalize_embeddings": model.similarity_fn_name == "cosine",
        }
        return (
            lambda texts: model.encode_query(texts, **options),
            lambda texts: model.encode_document(texts, **options),
        )


def _load_bi_encoder(name: str) -> Any:
    module = _import("sentence_transformers", f"The bi-encoder {name!r}")
    try:
        return module.SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{name!r} is neither 'bm25' nor a SentenceTransformer in a folder or on the Hub: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _encoded(texts: Iterable[str], encode: Callable[[list[str]], Any]) -> Iterator[Floats]:
    """Vectors [n, H] of some texts at a time.

    Raises:
        DataError: The encoder returned something else.
    """
    source, width = iter(texts), None
    while chunk := list(itertools.islice(source, ENCODED_AT_ONCE)):
        answer = encode(chunk)
        vectors = np.asarray(answer.tolist() if hasattr(answer, "tolist") else answer, dtype=np.float32)
        width = vectors.shape[-1] if width is None else width
        if vectors.shape != (len(chunk), width) or not np.isfinite(vectors).all():
            raise DataError(
                f"The encoder made numbers of shape {list(vectors.shape)} of {len(chunk)} texts, or some that aren't "
                "finite. Expected one vector of finite numbers for each text, all of one size."
            )
        yield vectors


def _blocks(parts: Iterable[Floats]) -> Iterator[Floats]:
    """Vectors of more texts at a time."""
    source = iter(parts)
    while held := list(itertools.islice(source, BLOCK // ENCODED_AT_ONCE)):
        yield np.concatenate(held)


class _ExactIndex:
    """The products of queries with all documents, of which the k highest are kept."""

    def __init__(self, blocks: Sequence[Floats]) -> None:
        self._blocks = blocks

    def __call__(self, queries: Floats, k: int) -> Hits:
        """For vectors [Q, H] the k best documents of each query; equal ones in the corpus's order."""
        kept: Hits = [[] for _ in queries]
        start = 0
        for block in self._blocks:
            products = queries @ block.T  # [Q, B]
            everything = np.arange(len(block))
            for row, (scores, best) in enumerate(zip(products, kept, strict=True)):
                found = [(start + index, score) for index, score in _best(scores, everything, k)]
                kept[row] = sorted(best + found, key=lambda hit: -hit[1])[:k]
            start += len(block)
        return kept


def _faiss_index(blocks: list[Floats]) -> Callable[[Floats, int], Hits]:
    """A search in an index of faiss by inner products: of all documents, or of the nearest of 4 √N clusters."""
    faiss = _import("faiss", "index='faiss'")
    documents, width = sum(map(len, blocks)), blocks[0].shape[1]
    clusters = int(4 * documents**0.5)
    if documents < FEWEST * clusters:
        index = faiss.IndexFlatIP(width)
    else:
        index = faiss.index_factory(width, f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(8, clusters // 16)
        step = max(1, documents // (64 * clusters))
        index.train(np.concatenate([block[::step] for block in blocks]))
    while blocks:
        index.add(blocks.pop(0))

    def search(queries: Floats, k: int) -> Hits:
        scores, places = index.search(queries, min(k, documents))
        rows = zip(places.tolist(), scores.tolist(), strict=True)
        return [[hit for hit in zip(*row, strict=True) if hit[0] >= 0] for row in rows]

    return search


# -- both --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HybridRetriever:
    """Several retrievers, fused by the ranks that they give a document (Cormack, Clarke and Buettcher 2009).

        >>> count = DenseRetriever(lambda texts: [[text.count("egg")] for text in texts])
        >>> find = HybridRetriever(("bm25", count)).over(["boil an egg", "fly a kite", "eggs"])
        >>> [index for index, score in find(["boil an egg"], 3)[0]]
        [0, 2, 1]

    A document's score is the sum of 1 / (k + rank) over the retrievers that find it, with ranks from 1.

    Args:
        retrievers: Each as `mine_hard_negatives` takes it: "bm25", a name, a `DenseRetriever` or a callable.
        k: What keeps the first ranks from deciding alone.
        depth: How many documents of each retriever count, however few are asked for.
    """

    retrievers: tuple[Any, ...]
    k: int = 60
    depth: int = 1000

    def __post_init__(self) -> None:
        check_whole("k", self.k, lowest=0)
        check_whole("depth", self.depth)
        if len(self.retrievers) < 2:
            raise ConfigurationError(f"retrievers={self.retrievers!r}: expected two or more to fuse.")

    def over(self, texts: Iterable[str]) -> Retriever:
        """A callable on (queries, k) that searches a corpus, which every retriever reads."""
        check_retriever(self)
        # Each retriever reads them, which an iterator allows only once.
        documents: Any = texts if isinstance(texts, Sized) else list(texts)
        size = len(documents)
        started = [start_retriever(each, documents) for each in self.retrievers]

        def find(queries: list[str], k: int) -> Hits:
            depth = min(self.depth, size)
            lists = [read_hits(each(queries, depth), len(queries), size) for each in started]
            return [self._fuse([rows[place][:depth] for rows in lists])[:k] for place in range(len(queries))]

        return find

    def _fuse(self, rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        scores: dict[int, float] = {}
        for ranking in rankings:
            for rank, index in enumerate(ranking, 1):
                scores[index] = scores.get(index, 0.0) + 1 / (self.k + rank)
        return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))
