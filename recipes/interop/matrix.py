"""What other tools make of saved models: tools by the kinds of model that they read, as a Markdown table.

    python recipes/interop/matrix.py output/interop --environments ~/.cache/interop
    python recipes/interop/matrix.py output/interop --only haystack flashrank
    python recipes/interop/matrix.py output/interop --table

It makes the folders (`folders.py`), an environment for each tool, has every tool score the same pairs (`readers.py`),
and prints how far the scores are from those that the trained model gave in memory. The environments take about 12 GB.
Packages come as pip is configured: let it prefer torch's builds for CPUs. transformers.js needs node and npm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
ST = "sentence-transformers==6.2.0 peft==0.21.2"
REQUIREMENTS = {
    "transformers": f"{TORCH} transformers==5.23.0 {ST}",
    "transformers_4": f"{TORCH} transformers==4.57.6 sentence-transformers[train]==5.7.0 peft",
    "runtimes": "onnxruntime==1.32.0 openvino==2026.4.1 tokenizers==0.23.3",
    "onnx": f"{TORCH} sentence-transformers[onnx]==5.7.0",
    "langchain": f"{TORCH} langchain-community==0.4.2 {ST}",
    "llama_index": f"{TORCH} llama-index-core==0.14.25 llama-index-postprocessor-sbert-rerank==0.6.0 {ST}",
    "haystack": f"{TORCH} haystack-ai==3.4.1 sentence-transformers-haystack==2.0.0 {ST}",
    "rerankers": f"{TORCH} rerankers[transformers]==0.10.0 peft",
    "fastembed": "fastembed==0.9.1",
    "flashrank": "flashrank==0.2.10",
    "infinity": f"{TORCH} infinity-emb[torch]==0.0.78",
    "transformers_js": "@huggingface/transformers@4.3.1",
}
"""What is installed into the environment of each tool; the last one by npm."""


TOLERANCE = 1e-5
"""What is more than this is a difference to explain."""


@dataclass(frozen=True)
class Tool:
    """A column of the table: what a reader of `readers.py` is called, and where it runs; None for this environment."""

    title: str
    environment: str | None


TOOLS = {
    "ours": Tool("`CrossEncoder`", None),
    "score": Tool("`cross-trainer score`", None),
    "automodel": Tool("AutoModel", "transformers"),
    "automodel_4": Tool("AutoModel", "transformers_4"),
    "pipeline": Tool("pipeline", "transformers"),
    "sentence_transformers": Tool("sentence-transformers", "transformers"),
    "sentence_transformers_5": Tool("sentence-transformers", "transformers_4"),
    "langchain": Tool("LangChain", "langchain"),
    "llama_index": Tool("LlamaIndex", "llama_index"),
    "haystack": Tool("Haystack", "haystack"),
    "rerankers": Tool("rerankers", "rerankers"),
    "infinity": Tool("infinity", "infinity"),
    "onnxruntime": Tool("ONNX Runtime", "runtimes"),
    "openvino": Tool("OpenVINO", "runtimes"),
    "sentence_transformers_onnx": Tool("sentence-transformers, ONNX", "onnx"),
    "fastembed": Tool("fastembed", "fastembed"),
    "flashrank": Tool("FlashRank", "flashrank"),
    "transformers_js": Tool("transformers.js", "transformers_js"),
    "text_embeddings_inference": Tool("text-embeddings-inference, by its schema", "transformers"),
    "vllm": Tool("vLLM, by its schema", "transformers"),
}
KINDS = {
    "binary": "binary, MiniLM",
    "score": "score in [0, 1]",
    "classes": "3 classes",
    "multilabel": "several labels",
    "ranking": "ranking logits",
    "regression": "raw regression",
    "lora": "LoRA",
    "lora_merged": "LoRA, merged",
    "qwen3": "Qwen3",
    "llama": "Llama",
    "modernbert": "ModernBERT",
    "deberta": "DeBERTa",
    "xlm_roberta": "XLM-R",
}


# -- the run -----------------------------------------------------------------------------------------------------------


def environment(name: str, root: Path) -> Path:
    """The interpreter of a tool's environment, which is made where it isn't as `REQUIREMENTS` says."""
    folder, required = root / name, REQUIREMENTS[name]
    python = Path("node") if name == "transformers_js" else folder / "bin" / "python"
    installed = folder / "installed.txt"
    if installed.is_file() and installed.read_text() == required:
        return python
    if name == "transformers_js":
        folder.mkdir(parents=True, exist_ok=True)
        # Its install script would download what CPUs don't need.
        subprocess.run(["npm", "install", "--ignore-scripts", *required.split()], cwd=folder, check=True)
    else:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *required.split()], check=True)
    installed.write_text(required)
    return python


def run(reader: str, folders: Path, environments: Path) -> None:
    """Have a tool score the pairs with every folder."""
    name = TOOLS[reader].environment
    program = Path(sys.executable) if name is None else environment(name, environments)
    script = HERE / "readers.py"
    if reader == "transformers_js":
        script = environments / name / "readers.mjs"  # it finds packages beside itself
        script.write_bytes((HERE / "readers.mjs").read_bytes())
    words = [script, folders.resolve()] if reader == "transformers_js" else [script, reader, folders]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name is not None:
        variables.pop("PYTHONPATH", None)
    subprocess.run([program, *words], check=True, env=variables)


# -- the table ---------------------------------------------------------------------------------------------------------


def describe(found: dict[str, Any], expected: dict[str, Any], groups: list[str]) -> str:
    """A cell: what a tool's numbers are, and the largest difference from ours, of all pairs or of all but some."""
    if "error" in found:
        return "no"
    logits, scores = np.array(expected["logits"]), np.array(found["scores"])
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    meanings = {
        "": np.array(expected["scores"]),
        "logits": logits,
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "softmax": powers / powers.sum(-1, keepdims=True),
    }
    if scores.ndim < logits.ndim:  # some tools keep one number of several
        columns = itertools.product(meanings.items(), range(2))
        meanings = {f"class {index}, {name}".strip(", "): meant[:, index] for (name, meant), index in columns}
    cells = [cell for name, meant in meanings.items() if (cell := _compare(name, scores, meant, groups))]
    return min(cells)[1] if cells else "other numbers"


def _compare(name: str, scores: np.ndarray, meant: np.ndarray, groups: list[str]) -> tuple[int, str] | None:
    """How many groups of pairs differ, and a cell, if it isn't all of them."""
    if scores.shape != meant.shape:
        return None
    differences = np.abs(scores - meant).reshape(len(scores), -1).max(-1)
    largest = {group: max(differences[np.array(groups) == group]) for group in dict.fromkeys(groups)}
    odd = {group: difference for group, difference in largest.items() if difference > TOLERANCE}
    if len(odd) == len(largest):
        return None
    rest = max(difference for group, difference in largest.items() if group not in odd)
    return len(odd), f"{name} {rest:.0e}".strip() + (f"; not {', '.join(odd)}" if odd else "")


def table(folders: Path) -> str:
    """A row for each tool that has run, a column for each kind of model, and the errors below."""
    groups = [group or "plain" for _, _, group in json.loads((folders / "pairs.json").read_text())]
    expected = {kind: json.loads((folders / f"{kind}.json").read_text()) for kind in KINDS}
    lines, errors = [["", *KINDS.values()], ["---"] * (len(KINDS) + 1)], []
    for name, tool in TOOLS.items():
        path = folders / "results" / f"{name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text())
        title = f"{tool.title} {result['version']}".strip()
        lines.append([title, *(describe(result["kinds"][kind], expected[kind], groups) for kind in KINDS)])
        reasons = {kind: result["kinds"][kind].get("error") for kind in KINDS}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            kinds = [KINDS[kind] for kind, found in reasons.items() if found == reason]
            errors.append(f"- {title}: {', '.join(kinds)}: {reason}")
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *errors])


def main() -> None:
    """Make what is missing, run the tools, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, help="where models and results are")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "cross_trainer_interop")
    parser.add_argument("--only", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--table", action="store_true", help="print the table of earlier runs alone")
    options = parser.parse_args()
    if not all((options.folders / f"{kind}.json").is_file() for kind in KINDS):
        subprocess.run([sys.executable, HERE / "folders.py", options.folders], check=True)
    for reader in [] if options.table else options.only:
        run(reader, options.folders, options.environments.expanduser().resolve())
    print(table(options.folders))


if __name__ == "__main__":
    main()
