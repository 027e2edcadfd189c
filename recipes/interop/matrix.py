"""What other tools make of saved models: kinds of model by tools that read them, as a Markdown table.

    python recipes/interop/matrix.py output/interop --environments ~/.cache/interop
    python recipes/interop/matrix.py output/interop --only haystack flashrank
    python recipes/interop/matrix.py output/interop --table

It makes the folders (`folders.py`), an environment for each tool, has every tool score the same pairs (`readers.py`), and
prints how far the scores are from those that the trained model gave in memory. About 12 GB and half an hour. Environments take
packages by pip's own configuration: let it prefer torch's builds for CPUs.
"""

from __future__ import annotations

import argparse
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
REQUIREMENTS = {
    "transformers": f"{TORCH} transformers==5.23.0 sentence-transformers==6.2.0 peft==0.21.2",
    "transformers_4": f"{TORCH} transformers==4.57.6 sentence-transformers==5.7.0 peft==0.17.1",
    "runtimes": "onnxruntime==1.32.0 openvino==2026.4.1 tokenizers==0.23.3",
    "onnx": f"{TORCH} sentence-transformers[onnx]==6.2.0",
    "langchain": f"{TORCH} langchain-community==0.4.2 sentence-transformers==6.2.0",
    "llama_index": f"{TORCH} llama-index-core==0.14.25 llama-index-postprocessor-sbert-rerank==0.6.0",
    "haystack": f"{TORCH} haystack-ai==3.4.1 sentence-transformers-haystack==2.0.0",
    "rerankers": f"{TORCH} rerankers[transformers]==0.10.0",
    "fastembed": "fastembed==0.9.1",
    "flashrank": "flashrank==0.2.10",
    "infinity": f"{TORCH} infinity-emb[torch]==0.0.78",
    "transformers_js": "@huggingface/transformers@4.3.1",
}
"""What is installed into the environment of each tool; the last one by npm."""


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
    """The interpreter of a tool's environment, made where there is none yet."""
    folder = root / name
    if name == "transformers_js":
        if not (folder / "node_modules").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            # Its install script would download what CPUs don't need.
            subprocess.run(["npm", "install", "--ignore-scripts", *REQUIREMENTS[name].split()], cwd=folder, check=True)
        return Path("node")
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[name].split()], check=True)
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
        return found["error"]
    logits = np.array(expected["logits"])
    shifted = np.exp(logits - logits.max(-1, keepdims=True)) if logits.ndim > 1 else np.ones_like(logits)
    meanings = {
        "": np.array(expected["scores"]),
        "logits": logits,
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "softmax": shifted / shifted.sum(-1, keepdims=True),
    }
    scores = np.array(found["scores"])
    cells = []
    for name, meant in meanings.items():
        if scores.shape != meant.shape:
            continue
        differences = np.abs(scores - meant).reshape(len(scores), -1).max(-1)
        odd = {group for group, difference in zip(groups, differences, strict=True) if difference > 1e-5}
        rest = [difference for group, difference in zip(groups, differences, strict=True) if group not in odd]
        if rest:
            but = ", ".join(f"{group or 'plain'} {differences[np.array(groups) == group].max():.0e}" for group in sorted(odd))
            cells.append((len(odd), f"{name} {max(rest):.0e}{f' (but {but})' if odd else ''}".strip()))
    return min(cells, key=lambda cell: cell[0])[1] if cells else f"other, shape {scores.shape}"


def table(folders: Path) -> str:
    """A row for each kind of model, a column for each tool that has run."""
    groups = [group for _, _, group in json.loads((folders / "pairs.json").read_text())]
    results = {name: json.loads(path.read_text()) for name in TOOLS if (path := folders / "results" / f"{name}.json").is_file()}
    heads = [f"{TOOLS[name].title} {result['version']}" for name, result in results.items()]
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    for kind, title in KINDS.items():
        expected = json.loads((folders / f"{kind}.json").read_text())
        cells = [describe(result["kinds"][kind], expected, groups) for result in results.values()]
        lines.append([title, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Make what is missing, run the tools, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, help="where models and results are")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "cross_trainer_interop")
    parser.add_argument("--only", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--table", action="store_true", help="print the table of earlier runs alone")
    options = parser.parse_args()
    if not (options.folders / "pairs.json").is_file():
        subprocess.run([sys.executable, HERE / "folders.py", options.folders], check=True)
    for reader in [] if options.table else options.only:
        run(reader, options.folders, options.environments.expanduser().resolve())
    print(table(options.folders))


if __name__ == "__main__":
    main()
