"""SavingTrainer: a Trainer that saves and uploads whole models: for every reader, with adapters, rows known and a card.

What `transformers.Trainer` saves is a part: readers need the length, the labels and what scores mean, an adapter its
head, strangers a card. An upload that fails is told, and training goes on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from cross_trainer.data.collator import PairCollator
from cross_trainer.data.columns import is_stream
from cross_trainer.data.fingerprints import Fingerprints, Recorder, fingerprints_of, joined
from cross_trainer.disk import telling_full
from cross_trainer.errors import ConfigurationError, DiskFullError, UnsupportedModelError
from cross_trainer.internals import TrainerSeams, replaced
from cross_trainer.saved.adapters import (
    adapter_folders,
    check_mergeable,
    check_place,
    complete_weights,
    merged,
    remove_other_form,
)
from cross_trainer.saved.card import CARD, never_fatal, write_card
from cross_trainer.saved.folder import complete_folder, write_trained_rows
from cross_trainer.saved.hub import fetch_card
from cross_trainer.saved.loading import load_trained_rows
from cross_trainer.saved.readme import Readme
from cross_trainer.training.checkpoints import begin_checkpoint, give_up
from cross_trainer.training.facts import RunRecord
from cross_trainer.training.hub import HUB_ERRORS, say_not_uploaded, watch_uploads
from cross_trainer.training.parts import whole_weights
from cross_trainer.training.plan import DataPlan, Plan

AFTER_FULL_CHECKPOINT = (
    "Earlier checkpoints are as they were: free some space, or set save_total_limit, and go on with "
    "resume_from_checkpoint=True."
)


class SavingTrainer(TrainerSeams):
    """What `CrossEncoderTrainer` is beside training and evaluating; its constructor sets what is declared here."""

    plan: Plan | None
    plans: dict[str, Plan]
    hub_model_id: Any  # a name, or None before there is a repository
    push_in_progress: Any
    _record: RunRecord
    _hub_error: Exception | None = None  # why there is no repository

    # What is being saved.
    _merges = False
    _saves_checkpoint = False

    # What was trained on.
    _fingerprints: bool
    _recorders: list[Recorder]  # of streams
    _hashed: Fingerprints | None = None  # of mapped rows
    _trained_before: Fingerprints | None = None  # of the checkpoint that training goes on from
    _source: dict[str, Any]

    @property
    def _config(self) -> Any:  # a PretrainedConfig, whose label fields are typed as optional
        return self.accelerator.unwrap_model(self.model).config

    @property
    def _output_dir(self) -> str:
        assert self.args.output_dir is not None  # TrainingArguments fill it in
        return self.args.output_dir

    @property
    def training_data(self) -> dict[str, tuple[Plan, DataPlan]]:
        """What is trained on, by its name in the run, with the plan that is followed; "train" where it has none."""
        rows: Any = self.train_dataset
        if self.plan is None or rows is None:
            return {}
        if not self.plans:
            return {"train": (self.plan, self.plan.for_dataset(rows))}
        return {name: (plan, plan.for_dataset(rows[name])) for name, plan in self.plans.items()}

    def trained_rows(self, *, begun: bool = False) -> Fingerprints:
        """Fingerprints of the pairs that the model was trained on, in this training and in earlier ones, if known.

        Args:
            begun: Count this training even if no step of it has been taken.
        """
        earlier = load_trained_rows(self._config.name_or_path, self._source) if self._config.name_or_path else None
        if not (begun or self.state.global_step) or self.plan is None or not self._fingerprints:
            return joined(earlier)
        if self._hashed is None and isinstance(self.data_collator, PairCollator):
            planned = [planned for _, planned in self.training_data.values() if not is_stream(planned.dataset)]
            self._hashed = joined(*(fingerprints_of(each.dataset, each.columns) for each in planned))
        return joined(
            earlier, self._trained_before, self._hashed, *(recorder.fingerprints() for recorder in self._recorders)
        )

    @property
    def _model_step(self) -> int:
        """The step whose model is in memory: the best one, once that has been loaded."""
        best, loads = self.state.best_global_step, self.args.load_best_model_at_end and not self.is_in_train
        return best if best and loads and self.state.best_model_checkpoint else self.state.global_step

    # -- the folder ----------------------------------------------------------------------------------------------------

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, *, merge_adapters: bool | None = None
    ) -> None:
        """Save model, tokenizer and card so that every reader cuts and pads pairs, and scores them, as training did.

        With `push_to_hub=True`, what was saved is uploaded. Where that fails, a warning says so.

        Args:
            output_dir: Made if it isn't there. Default: that of the arguments.
            merge_adapters: Save a plain classifier with the adapters of peft in its weights; the model in memory stays
                as it is. Default: as at construction.

        Raises:
            ConfigurationError: The folder can't hold the model, or there are no adapters to merge.
            UnsupportedModelError: The adapters can't be merged.
            DiskFullError: The disk is full.
        """
        folder = self._output_dir if output_dir is None else output_dir
        is_checkpoint = _internal_call and output_dir is not None
        merges = not is_checkpoint and (self._merges if merge_adapters is None else merge_adapters)
        if merges:
            self._check_merging()
        else:
            check_place(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), folder)
        before = Readme.read(Path(folder, CARD))  # peft writes one of its own
        pushes = self.args.push_to_hub and not _internal_call
        remedy = AFTER_FULL_CHECKPOINT if is_checkpoint else "Free some space, and save it again."
        whole = contextlib.nullcontext() if is_checkpoint else whole_weights(self.accelerator)
        with telling_full(folder, remedy), replaced(self, _merges=merges, _saves_checkpoint=is_checkpoint), whole:
            super().save_model(output_dir, True)
            if self.args.should_save:
                self._complete(folder, before, quick=_internal_call or pushes)
            if pushes:
                self._push_saved(folder)

    @contextlib.contextmanager
    def saving(self, folder: str | None, state: Any) -> Iterator[None]:
        """Merge adapters if asked to, and write what peft and transformers leave out."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._merges and self.args.should_save:
            model = merged(model)
        with replaced(self, model=model) if self._merges else contextlib.nullcontext():
            yield
        if self.args.should_save:
            complete_weights(model, self._output_dir if folder is None else folder, state, self._saves_checkpoint)

    @contextlib.contextmanager
    def checkpointing(self, folder: str) -> Iterator[None]:
        """Let a checkpoint count as whole only at its end, and leave no part of it where the disk is full.

        Raises:
            DiskFullError: It is. Earlier checkpoints are as they were.
        """
        if self.args.should_save:
            begin_checkpoint(folder)
        try:
            with telling_full(folder, AFTER_FULL_CHECKPOINT):
                yield
        except DiskFullError:
            give_up(folder)
            raise

    def _complete(self, folder: str, before: Readme | None = None, *, quick: bool) -> None:
        """Write into a saved model's folder what the Trainer doesn't."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(self.data_collator, PairCollator):
            for place in [Path(folder)] if self._merges else adapter_folders(model, folder):
                complete_folder(place, self._config, self.data_collator.tokenizer, self.data_collator.length_limit)
                write_trained_rows(place, self.trained_rows())
        if self.is_world_process_zero():
            self._write_card(folder, before, quick=quick)

    def _check_merging(self) -> None:
        """Check that the model's adapters can be merged and saved so.

        Raises:
            ConfigurationError: There are none.
            UnsupportedModelError: They can't be merged.
        """
        check_mergeable(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UnsupportedModelError(
                "merge_adapters=True needs the whole model on one process. Save the adapter, and merge it afterwards: "
                "CrossEncoder(folder).save_pretrained(another, merge_adapters=True)."
            )

    # -- the card ------------------------------------------------------------------------------------------------------

    def _write_card(
        self, folder: str, before: Readme | None = None, given: Mapping[str, Any] | None = None, *, quick: bool = False
    ) -> None:
        """Write the model card; what goes wrong there leaves the saved model as it is."""
        address = self.hub_model_id or Path(folder).resolve().name
        with never_fatal(folder):
            facts = self._record.facts(self, self._model_step, Path(folder), address, quick=quick)
            write_card(folder, facts.with_names(given or {}), before, given)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,  # noqa: A002
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the model card into `output_dir`, from facts; what somebody has edited there stays.

        Args:
            language: Of the texts, by its code: "en". Unlike the other arguments, it isn't known otherwise, and
                neither is the license.
            license: Of the model, by the Hub's name for it: "apache-2.0".
            tags: More tags.
            model_name: Instead of the repository's or the folder's.
            finetuned_from: The base model's id, instead of where it was loaded from.
            tasks: Its task, instead of "text-ranking" for one label and "text-classification" for more.
            dataset_tags: Ids of data sets on the Hub.
            dataset: The name of the evaluation set.
            dataset_args: The configuration of it.
        """
        if not self.is_world_process_zero():
            return
        given: dict[str, Any] = {"language": language, "license": license, "tags": tags, "model_name": model_name}
        given |= {"base_model": finetuned_from, "pipeline_tag": tasks, "datasets": dataset_tags}
        given |= {"dataset": dataset, "dataset_args": dataset_args}
        self._write_card(self._output_dir, given={key: value for key, value in given.items() if value is not None})

    # -- the Hub -------------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository if it isn't there; where that fails, a warning says so, and training goes on."""
        try:
            super().init_hf_repo(token, private)
            self._hub_error = None
            if self.hub_model_id is not None:
                fetch_card(self.hub_model_id, self._output_dir, token or self.args.hub_token)
        except HUB_ERRORS as error:
            self._hub_error = error
            say_not_uploaded("anything, as the repository can't be made or read", self._output_dir, error)

    def push_checkpoint(self, folder: str, push: Callable[[str], None]) -> None:
        """Upload a checkpoint in the background, with all files of the model; a warning says where that fails."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.hub_model_id is None:  # the Hub couldn't be reached before
            self.init_hf_repo()
        if self.hub_model_id is None:
            return
        what, before = f"{Path(folder).name} and its model", list(self._uploads)
        with replaced(self, processing_class=_Completing(self)):
            push(folder)
        watch_uploads([job for job in self._uploads if job not in before], what, self._output_dir)

    @property
    def _uploads(self) -> list[Any]:
        """Uploads in the background."""
        return [] if self.push_in_progress is None else self.push_in_progress.jobs

    def _push_saved(self, folder: str) -> None:
        """Upload what `save_model` has saved; where that fails, a warning says so."""
        try:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        except HUB_ERRORS as error:
            if error is not self._hub_error:  # of which `init_hf_repo` has told
                say_not_uploaded("the saved model", folder, error)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        merge_adapters: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model in `output_dir` with its card, and upload it, as `transformers.Trainer` does.

        What an earlier model of the other form, merged or not, left in the repository is removed.

        Args:
            commit_message: The commit's title.
            blocking: Return when it is uploaded.
            token: Default: that of the arguments, or the one you are logged in with.
            revision: A branch to commit to.
            private: Whether a new repository is private.
            merge_adapters: As in `save_model`.
            kwargs: Arguments of `create_model_card`.

        Raises:
            OSError, RuntimeError: The upload failed. The model is saved, and another call takes the upload up. Without
                `blocking`, a warning says so instead.
        """
        with replaced(self, _merges=self._merges if merge_adapters is None else merge_adapters):
            if self.is_world_process_zero() and self.hub_model_id is None:
                self.init_hf_repo(token, private)
                if self._hub_error is not None:
                    self.save_model(_internal_call=True)
                    self.create_model_card(**kwargs)
                    raise self._hub_error
            upload: Any = super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        folder, key, branch = self._output_dir, token or self.args.hub_token, revision or self.args.hub_revision
        tidy = functools.partial(remove_other_form, self.hub_model_id, folder, key, branch)
        if blocking and self.is_world_process_zero():
            tidy()
        elif upload is not None:
            watch_uploads([upload], "the saved model", folder, tidy)
        return upload


def check_uploads(args: TrainingArguments, merge_adapters: bool) -> None:
    """Check that no checkpoint is uploaded beside a merged model.

    Raises:
        ConfigurationError: One would be.
    """
    if merge_adapters and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ConfigurationError(
            f"merge_adapters=True, but hub_strategy={HubStrategy(args.hub_strategy).value!r} uploads the adapter of "
            'every checkpoint beside the merged model. Set hub_strategy="end".'
        )


class _Completing:
    """Stands in for the tokenizer where the Trainer saves that beside a model to upload: it saves all that belongs."""

    def __init__(self, trainer: SavingTrainer) -> None:
        self.trainer = trainer

    def save_pretrained(self, folder: str) -> None:
        self.trainer._complete(folder, quick=True)  # noqa: SLF001
