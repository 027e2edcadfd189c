"""The page of `cross-trainer report`: its numbers, that no text is read as HTML, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial

import numpy as np
import pytest
from commands import error, expected, labelled, run, save
from datasets import Dataset
from transformers import EvalPrediction

from cross_trainer.commands.evaluate import measure
from cross_trainer.commands.report import DOCUMENT, TEXT, page_data
from cross_trainer.data.columns import Columns
from cross_trainer.metrics import views
from cross_trainer.metrics.page import render
from cross_trainer.metrics.pairs import binary_metrics
from cross_trainer.metrics.rankings import ranking_metrics
from cross_trainer.scoring.cross_encoder import CrossEncoder

TAKE = "document.title = 'taken'"
HOSTILE = f'</script><script>{TAKE}</script><img src=x onerror="{TAKE}"> {{{{script}}}} \u2028'
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src '{}'; base-uri 'none'; form-action 'none'"


@pytest.fixture(autouse=True, scope="module")
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "DRAWN_ROWS", 0)
        patch.setattr(views, "SIGNED_ROWS", 0)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [save(tmp_path_factory.mktemp(f"model{seed}"), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def rows():
    rows = labelled()
    rows[5]["second"] = HOSTILE
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory, models, rows):
    """The page of two models on pairs with 0 and 1."""
    folder = tmp_path_factory.mktemp("page")
    Dataset.from_list(rows).to_json(folder / "rows.jsonl")
    run("report", models[0], folder / "rows.jsonl", "-o", folder / "report.html", "--other", models[1])
    return folder / "report.html"


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


# -- what it holds -----------------------------------------------------------------------------------------------------


def test_numbers_of_both_models(page, models, rows):
    data = data_of(page)
    assert (data["kind"], data["rows"], data["source"], data["names"]) == ("binary", 24, "rows.jsonl", models)
    found = {each["name"]: each for each in data["metrics"]}
    for index, name in enumerate(models):
        for key, value in measure(CrossEncoder(name), Dataset.from_list(rows), calibration=True).items():
            if key != "loss":
                assert found[key]["values"][index][0] == pytest.approx(value, abs=1e-5)
    value, low, high = found["average_precision"]["values"][0]
    assert low <= value <= high
    test = found["accuracy@0.5"]["test"]
    assert 0 < test["p_value"] <= 1
    assert test["exchanged"] == "values of a row"
    assert found["mcc"]["test"] is None


def test_the_worst_rows_come_first(page, models, rows):
    worst = data_of(page)["worst"]
    letters = [f"{letter}: {name}" for letter in "AB" for name in ("score", "distance")]
    assert worst["names"] == ["row", "label", *letters, "first", "second"]
    scores = np.stack([expected(name, rows) for name in models], axis=1)
    distances = np.abs(scores - np.array([[row["label"]] for row in rows]))
    assert [entry[3] for entry in worst["rows"]] == pytest.approx(sorted(distances[:, 0], reverse=True), abs=1e-5)
    for row, label, _, own, _, other, first, second in worst["rows"]:
        assert (label, first, second) == tuple(rows[row][name] for name in ("label", "first", "second"))
        assert (own, other) == pytest.approx(tuple(distances[row]), abs=1e-5)


def test_no_text_is_read_as_html(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "\u2028" not in text
    assert any(HOSTILE in row for row in data_of(page)["worst"]["rows"])


def test_nothing_can_be_fetched(page):
    text = page.read_text(encoding="utf-8")
    script = text[text.index("<script>") + 8 : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert POLICY.format(f"sha256-{digest}") in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\b(src|href)=|url\(|@import|innerHTML|insertAdjacent|document\.write|eval\(", script)


KINDS = {
    "numbers": (1, lambda index: index % 5 / 4, "distance_from_line"),
    "classes": (3, lambda index: ["no", "maybe", "yes"][index % 3], "accuracy"),
    "labels": (3, lambda index: [index % 2, 1, index // 12], "subset_accuracy"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_label_has_its_page(tmp_path, kind):
    outputs, label, key = KINDS[kind]
    model = save(tmp_path / "model", outputs)
    Dataset.from_list(labelled(label)).to_json(tmp_path / "rows.jsonl")
    run("report", model, tmp_path / "rows.jsonl", "-o", tmp_path / "report.html", "--worst", 7)
    data = data_of(tmp_path / "report.html")
    assert data["kind"] == kind
    assert key in [each["name"] for each in data["metrics"]]
    worst = data["worst"]
    assert len(worst["rows"]) == 7
    shown = label(worst["rows"][0][0])
    names = ["no", "maybe", "yes"]
    expected = ", ".join(name for name, one in zip(names, shown, strict=True) if one) if kind == "labels" else shown
    assert worst["rows"][0][1] == expected


def test_lists_show_the_worst_queries(tmp_path, models):
    rows = labelled(count=24)
    lists = [
        {
            "query": rows[at]["first"],
            "documents": [row["second"] * 40 for row in rows[at : at + 12]],
            "labels": [0] * 11 + [1 + at % 2],
        }
        for at in range(6)
    ]
    Dataset.from_list(lists).to_json(tmp_path / "rows.jsonl")
    run("report", models[0], tmp_path / "rows.jsonl", "-o", tmp_path / "report.html", "--other", models[1])
    data = data_of(tmp_path / "report.html")
    assert data["kind"] == "ranking"
    assert data["worst"]["names"] == ["row", "A: ndcg@10", "B: ndcg@10", "query", "documents"]
    quality = [row[1] for row in data["worst"]["rows"]]
    assert quality == sorted(quality)
    for row, _, _, query, documents in data["worst"]["rows"]:
        assert query == lists[row]["query"]
        assert [each["ranks"][0] for each in documents[:10]] == list(range(1, 11))
        assert any(each["grade"] >= 1 for each in documents)
        assert all(len(each["text"]) <= DOCUMENT for each in documents)


def test_a_teachers_scores_are_numbers(tmp_path, models):
    rows = [{"query": f"question {at}", "documents": ["one", "two"], "labels": [at - 0.5, 2.5 - at]} for at in range(6)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    run("report", models[0], tmp_path / "rows.jsonl", "-o", tmp_path / "report.html")
    data = data_of(tmp_path / "report.html")
    assert (data["kind"], data["rows"]) == ("numbers", 12)
    for row, label, *_, query, document in data["worst"]["rows"]:
        assert query == f"question {row}"
        assert label == rows[row]["labels"][["one", "two"].index(document)]


def test_a_page_stays_small():
    class Rows:
        def __getitem__(self, row):
            return {"first": "漢字" * 9999, "second": ["ü字" * 9999] * 30, "labels": labels[row].tolist()}

    labels = np.random.default_rng(0).integers(2, size=(500, 30))
    found = [
        views.view(ranking_metrics(), EvalPrediction(np.random.default_rng(seed).random(labels.shape), labels), 0.95)
        for seed in (1, 2)
    ]
    data = page_data(found, Rows(), Columns("first", ("second",), "labels", "list"), 0.95, 100)
    assert len(render("title", data).encode()) < 2_000_000
    labels = labels[:, 0]
    Rows.__getitem__ = lambda self, row: {"first": "漢字" * 9999, "second": "ü字" * 9999, "label": int(labels[row])}
    logits = [np.random.default_rng(seed).normal(size=(500, 1)) for seed in (1, 2)]
    found = [views.view(binary_metrics(), EvalPrediction(each, labels), 0.95) for each in logits]
    data = page_data(found, Rows(), Columns("first", ("second",), "label"), 0.95, 100)
    assert len(data["worst"]["rows"][0][-1]) == TEXT
    assert len(render("title", data).encode()) < 2_000_000


def test_what_is_refused(tmp_path, models, page):
    rows = page.parent / "rows.jsonl"
    argv = ["report", models[0], rows, "-o", tmp_path / "new.html"]
    assert "exists. Pass --overwrite" in error("report", models[0], rows, "-o", page)
    assert "no such folder" in error(*argv, "--other", tmp_path / "none")
    assert "confidence is 95" in error(*argv, "--confidence", "95")
    several = save(tmp_path / "several", 3)
    assert "is measured by BinaryMetrics and" in error(*argv, "--other", several)
    assert not (tmp_path / "new.html").exists()


# -- what it does ------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


def opened(folder, address):
    """The page as a browser has made it, and what it complains of."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--enable-logging=stderr"]
    argv = [CHROMIUM, *flags, "--dump-dom", address]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@in_browser
def test_the_threshold_moves_the_numbers(tmp_path, page, models, rows):
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *told):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(page.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/report.html"
        told, complaints = opened(tmp_path, f"{address}#threshold=0.6")
        server.shutdown()
    assert complaints == []
    assert {*requests} == {"/report.html"}
    labels = np.array([row["label"] for row in rows])
    for index, name in enumerate(models):
        metrics = binary_metrics(0.6, "identity")(EvalPrediction(expected(name, rows), labels))
        for key in ("precision", "recall", "F1", "accuracy"):
            value = re.search(rf'data-figure="{key}" data-model="{index}"[^>]*>([^<]*)<', told)[1]
            assert float(value.replace("\u2013", "0")) == pytest.approx(metrics[f"{key.lower()}@0.6"], abs=1e-4)
    assert "<title>taken" not in told
    assert "&lt;img src=x" in told
    assert re.search(r'<td[^>]*><span data-p="accuracy@0.5">[0-9.e-]+</span>', told)


@in_browser
def test_no_kind_of_page_fails(tmp_path, models):
    rows = labelled(count=6)
    one = [{**rows[0], "label": 0}]
    lists = [{"query": "who?", "documents": ["you", "me"], "labels": [0, grade]} for grade in (0, 1)]
    tables = {"none": [{**row, "label": 0} for row in rows], "one": one, "lists": lists}
    tables |= {kind: labelled(label) for kind, (_, label, _) in KINDS.items()}
    several = save(tmp_path / "several", 3)
    for name, table in tables.items():
        Dataset.from_list(table).to_json(tmp_path / f"{name}.jsonl")
        model = several if KINDS.get(name, (1,))[0] == 3 else models[0]
        run("report", model, tmp_path / f"{name}.jsonl", "-o", tmp_path / f"{name}.html")
    frames = "".join(f'<iframe src="{name}.html"></iframe>' for name in tables)
    (tmp_path / "all.html").write_text(frames + "<script>console.log('heard')</script>")
    complaints = opened(tmp_path / "browser", f"file://{tmp_path}/all.html")[1]
    assert len(complaints) == 1
    assert "heard" in complaints[0]


CLICKS = """
const range = document.getElementById("threshold");
range.value = 0;
range.dispatchEvent(new Event("input"));
const button = [...document.querySelectorAll(".sortable th button")].find(each => each.textContent === "row");
button.click();
button.click();
const search = document.querySelector("input[type=search]");
search.value = "ONERROR";
search.dispatchEvent(new Event("input"));
const lines = [...document.querySelectorAll(".sortable tbody tr")];
const told = {
  recall: [...document.querySelectorAll("[data-figure=recall]")].map(each => each.textContent),
  cells: [...document.querySelectorAll("[data-cell]")].map(each => each.firstChild.textContent),
  order: lines.map(each => each.cells[0].textContent),
  sorted: button.parentNode.getAttribute("aria-sort"),
  visible: lines.filter(each => !each.hidden).map(each => each.cells[0].textContent),
};
document.body.append(Object.assign(document.createElement("pre"), {id: "told", textContent: JSON.stringify(told)}));
"""


@in_browser
def test_the_slider_the_headers_and_the_search_work(tmp_path, page):
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    (tmp_path / "clicked.html").write_text(text.replace("</body>", f"<script>{CLICKS}</script></body>"))
    dom, complaints = opened(tmp_path / "browser", f"file://{tmp_path}/clicked.html")
    assert complaints == []
    told = json.loads(re.search(r'<pre id="told">(.*?)</pre>', dom)[1].replace("&quot;", '"'))
    assert told["recall"] == ["1", "1"]
    assert told["cells"] == ["0", "12", "0", "12"] * 2
    assert told["order"] == [str(row) for row in range(24)]
    assert told["sorted"] == "ascending"
    assert told["visible"] == ["5"]
