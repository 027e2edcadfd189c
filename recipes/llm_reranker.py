"""A language model that answers yes or no, trained to order documents: by LoRA, on lists.

    accelerate launch recipes/llm_reranker.py --demo
    accelerate launch recipes/llm_reranker.py --dataset folder/with/train.csv --bf16 --activation_checkpointing
    accelerate launch recipes/llm_reranker.py --model Qwen/Qwen3-0.6B --tokens yes no --template qwen3-reranker
    --instruction "Find the paragraph that answers." --dataset lists.jsonl --loss KLDivergenceLoss --bf16

The model becomes a classifier of one label, whose score is exactly `logit(yes) - logit(no)`: see
`cross_trainer.saved.rerankers`. Rows are those of rerank.py; labels are grades, or for KLDivergenceLoss a teacher's
scores. `max_tokens` bounds the memory of a step, however many documents a query has.

In the end there are three folders with the same scores: the adapter in `--output_dir`, beside it in `merged` a plain
classifier, and with `--to_causal` in `causal` a language model again, for servers that know its base.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import DatasetDict
from demo import parse_arguments, run
from demo_llm import ANSWERS, TEMPLATE, build_language_model, build_tokenizer
from demo_search import search_queries
from rankings import RankingArguments, choose_loss, finish, lists_of
from transformers import TrainingArguments

from cross_trainer import CrossEncoder, CrossEncoderTrainer, ranking_metrics
from cross_trainer.commands.arguments import load_tokenizer
from cross_trainer.commands.processes import on_main
from cross_trainer.data.grouping import DOCUMENTS
from cross_trainer.data.splits import load_splits
from cross_trainer.training.plan import default_collator

# Each of these, like every other field of TrainingArguments, is also a flag of the command line.
SETTINGS: dict[str, Any] = {
    "model": "Qwen/Qwen3-Reranker-0.6B",
    "output_dir": "output/llm_reranker",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,  # queries, each with all its documents
    "per_device_eval_batch_size": 8,
    "learning_rate": 2e-4,  # with a linear decay to 0; about ten times that of the whole model
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "logging_steps": 25,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "ndcg@10",
}
# A model of random weights, of which most are frozen, needs large steps to learn anything.
DEMO: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 5e-3}


@dataclass
class Arguments(RankingArguments):
    """Options of this recipe."""

    lora: bool = field(default=True, metadata={"help": "Freeze the model; train a LoRA and the head."})
    loss: Literal["ListNetLoss", "LambdaLoss", "RankNetLoss", "KLDivergenceLoss"] | None = field(
        default=None, metadata={"help": "Default: ListNetLoss for grades, KLDivergenceLoss for a teacher's scores."}
    )
    documents_per_query: int | None = field(
        default=16, metadata={"help": "The most documents of a list in training: relevant ones first."}
    )
    tokens: list[str] | None = field(
        default=None, metadata={"help": "What the model answers, such as: yes no. Default: those of its files."}
    )
    template: str | None = field(
        default=None, metadata={"help": "The text of a pair, or the name of one. Default: that of the model's files."}
    )
    instruction: str | None = field(default=None, metadata={"help": "The instruction in the template."})
    max_query_length: int | None = field(default=None, metadata={"help": "Tokens of the query at most."})
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Of the frozen weights; bfloat16 halves their memory, and needs --bf16."}
    )
    to_causal: bool = field(default=False, metadata={"help": "Save a language model again, too."})


def demo_model(options: Arguments, args: TrainingArguments, splits: DatasetDict) -> str:
    """A small language model for the demo that has learned on other queries what relevant means, in a folder."""
    folder = str(Path(args.output_dir, "base"))
    first = splits["train"].select(range(len(splits["train"]) // 2))
    texts = [text for row in splits["train"] for text in (row["query"], *row[DOCUMENTS])]
    on_main(lambda: build_language_model(folder, build_tokenizer(texts), seed=args.seed))
    options.tokens, options.template = list(ANSWERS), TEMPLATE
    splits["train"] = splits["train"].select(range(len(first), len(splits["train"])))
    if args.process_index == 0:
        print(
            f"Demo: the language model is a small one of random weights in {folder}, trained first on half the queries."
        )
    trainer = make_trainer(
        options,
        folder,
        TrainingArguments(
            str(Path(folder, "run")),
            max_steps=args.max_steps,
            num_train_epochs=2,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
            use_cpu=args.use_cpu,
            disable_tqdm=args.disable_tqdm,
            dataloader_pin_memory=args.dataloader_pin_memory,
        ),
        train_dataset=first,
    )
    if args.max_steps:
        trainer.train()
    trainer.save_model()
    on_main(lambda: CrossEncoder(str(trainer.args.output_dir)).save_pretrained(folder, to_causal=True))
    options.tokens = options.template = None  # its files say so
    return folder


def make_trainer(options: Arguments, model: str, args: TrainingArguments, **parts: Any) -> CrossEncoderTrainer:
    """The trainer of a language model by its name or folder, read as its template says."""
    kwargs: dict[str, Any] = {} if options.tokens is None else {"tokens": options.tokens}
    collator = default_collator(
        model,
        load_tokenizer(model),
        None,
        kwargs,
        max_length=options.max_length,
        template=options.template,
        instruction=options.instruction,
        max_query_length=options.max_query_length,
    )
    return CrossEncoderTrainer(
        model,
        args,
        data_collator=collator,
        model_kwargs={**kwargs, "dtype": options.dtype},
        **{"padding_free": options.padding_free, "max_tokens": options.max_tokens, **parts},
    )


def save_other_forms(options: Arguments, folder: Path, pairs: list[tuple[str, str]]) -> None:
    """Write the plain classifier and the language model from the saved folder, and compare their scores with its."""
    saved = CrossEncoder(folder)
    expected, whole = saved.predict(pairs, activation="logits", show_progress_bar=False), folder
    forms: dict[Path, Any] = {}
    if options.lora and not options.merge_adapters:
        whole = folder / "merged"
        forms[whole] = lambda: saved.save_pretrained(whole, merge_adapters=True)
    if options.to_causal:
        causal = folder / "causal"
        forms[causal] = lambda: CrossEncoder(whole).save_pretrained(causal, to_causal=True)
    for form, save in forms.items():
        save()
        found = CrossEncoder(form).predict(pairs, activation="logits", show_progress_bar=False)
        print(f"Saved in {form}, with the same logits to {np.abs(found - expected).max():.0e}")


def main() -> None:
    """Train a language model to rank."""
    # 1. Read the settings from the command line: this recipe's own options, and transformers' TrainingArguments.
    options, args = parse_arguments(Arguments, SETTINGS, DEMO)

    # 2. Load the data, as lists of documents; the demo makes its model, too.
    splits = (
        search_queries()
        if options.demo
        else load_splits(options.dataset, options.dataset_config, args.seed, options.columns())
    )
    model = demo_model(options, args, splits) if options.demo else options.model
    train, held_out = lists_of(splits, options, args.seed)

    # 3. Put the trainer together: a classifier of one label under a LoRA.
    trainer = make_trainer(
        options,
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out["validation"].lists,
        compute_loss_func=choose_loss(options.loss, train),
        compute_metrics=ranking_metrics(),
        **options.of_trainer(),
    )

    # 4. Rank by the model as it came, train, and rank again.
    for queries in held_out.values():
        queries.add("before training", trainer.predict(queries.lists).predictions)
    if args.max_steps:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    for queries in held_out.values():
        queries.add("after training", trainer.predict(queries.lists).predictions)

    # 5. Save the best checkpoint, compare it with the model as it came, and write its other forms from its folder.
    finish(trainer, held_out, "after training", ["before training"])
    if args.process_index == 0:
        save_other_forms(options, Path(args.output_dir), held_out["validation"].pairs[:64])


if __name__ == "__main__":
    run(main)
