"""A chart of training and scoring speed, from the files that `training.py` and `scoring.py` write with `--json`.

    python recipes/benchmarks/chart.py training.json scoring.json -o speed.svg

A panel shows the pairs per second of this package, sentence-transformers and transformers for each measurement. Scoring
is shown at batches of 32 for the others, which is sentence-transformers' default. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a system is called in the files, in training and in scoring.
SYSTEMS = {
    "cross_trainer": {"training": "cross_trainer", "scoring": "cross_trainer"},
    "sentence-transformers": {"training": "sentence-transformers", "scoring": "sentence-transformers, batch 32"},
    "transformers": {"training": "Trainer", "scoring": "pipeline, batch 32"},
}
COLOURS = ("#1f6feb", "#9aa4af", "#c3cad1")


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """The measurements of some files: `work` ("training" or "scoring"), `data` and `pairs_per_second` by name."""
    return [record for path in paths for record in json.loads(path.read_text(encoding="utf-8"))]


def speeds(record: dict[str, Any]) -> list[float]:
    """Pairs per second of each of `SYSTEMS`.

    Raises:
        ValueError: One of them wasn't measured.
    """
    measured = record["pairs_per_second"]
    wanted = [names[record["work"]] for names in SYSTEMS.values()]
    missing = [name for name in wanted if name not in measured]
    if missing:
        raise ValueError(
            f"{record['work']} on {record['data']}: {missing[0]!r} wasn't measured, only {list(measured)}."
        )
    return [measured[name] for name in wanted]


def draw(records: list[dict[str, Any]]) -> Figure:
    """A panel of horizontal bars for each measurement."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(records), 2), layout="constrained", facecolor="white")
    for axes, record in zip(figure.subplots(1, len(records), squeeze=False)[0], records, strict=True):
        values = speeds(record)
        bars = axes.barh(list(SYSTEMS), values, color=COLOURS)
        axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=3)
        axes.set_title(f"{record['work']}, pairs per second\n{Path(*Path(record['data']).parts[-2:])}", fontsize=10)
        axes.set_xlim(0, 1.15 * max(values))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Read the measurements and write the chart."""
    import matplotlib

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files that training.py and scoring.py wrote with --json")
    parser.add_argument("--output", "-o", type=Path, default=Path("speed.svg"), help="an .svg or .png file")
    options = parser.parse_args()
    # The same measurements give the same bytes, and text stays text.
    with matplotlib.rc_context({"svg.hashsalt": "speed", "svg.fonttype": "none"}):
        metadata = {"Date": None} if options.output.suffix == ".svg" else {}
        draw(read(options.files)).savefig(options.output, dpi=150, metadata=metadata)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
