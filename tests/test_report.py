"""report.html: whole, self-contained, safe with any text, and nothing that went wrong is hidden."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from synthetic_predictions import make_study, make_table

from oaplug.core.errors import PathError
from oaplug.core.findings import Figure, Findings, Table
from oaplug.plug import AnalysisSpec
from oaplug.plug.registry import Part, Registry, registry
from oaplug.study.report import write_report
from oaplug.study.run import run_study

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: tags that do not close are an error."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.cells = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open:
            self.cells[-1] += f"{data} "

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def visible(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of the built-in classification of two models."""
    folder = tmp_path_factory.mktemp("study")
    study = make_study({"sharp": make_table(noise_std=0.5), "blurred": make_table(noise_std=2, seed=1)})
    run_study(study, ["classification"], folder=folder, registry=registry())
    text = write_report(folder).read_text(encoding="utf-8")
    return Page(text), text, json.loads((folder / "findings.json").read_text())


def report_of(folder, run, *, needs=("predictions",), models=("m",)):
    """The page for one made-up analysis."""

    class Made:
        def run(self, study, folder):
            return run(folder)

    spec = AnalysisSpec(name="made", summary="made up", build=lambda options: Made(), needs=frozenset(needs))
    parts = (Part(spec=spec, distribution="toy", version="1.0"),)
    study = make_study({name: make_table(subjects=5) for name in models})
    run_study(study, None, folder=folder, registry=Registry(parts=parts))
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_needs_no_network_and_no_script(page):
    parsed, text, _ = page
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert "@import" not in text
    assert "url(" not in text
    addresses = [
        a for _, attributes in parsed.tags for key, a in attributes.items() if key in {"src", "href"}
    ]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)


def test_every_figure_is_inlined_with_a_caption_to_read_instead(page):
    parsed, _, content = page
    figures = content["analyses"][0]["findings"]["figures"]
    images = parsed.all("img")
    assert [image["alt"] for image in images] == [figure["caption"] for figure in figures]
    assert all(int(image["width"]) > 100 for image in images)


def test_the_page_says_what_was_compared_and_what_was_found(page):
    parsed, _, content = page
    assert "sharp against blurred" in parsed.visible
    for sentence in content["analyses"][0]["findings"]["summary"]:
        assert sentence in parsed.visible
    for word in ("AUC", "QWK", "MAE", "What not to conclude", "How to go on", "oaplug_train"):
        assert word in parsed.visible
    assert f"{content['analyses'][0]['findings']['numbers']['sharp.kl.qwk']:.3f}" in parsed.visible


def test_every_link_leads_to_a_place_on_the_page(page):
    parsed, _, _ = page
    places = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    for link in parsed.all("a"):
        assert link["href"].removeprefix("#") in places
    for table in parsed.all("table"):
        assert table.get("aria-labelledby") is None or table["aria-labelledby"] in places


def test_a_value_and_its_bounds_are_shown_as_one_cell(tmp_path):
    columns = ("model", "QWK", "QWK low", "QWK high", "n")
    rows = (("a", 0.5, 0.25, 0.75, 7), ("b", None, None, None, 12345))
    table = Table(name="t", caption="c", columns=columns, rows=rows)
    parsed = report_of(tmp_path, lambda folder: Findings(title="T", tables=(table,)))
    assert [cell.split() for cell in parsed.cells[-6:]] == [
        ["a"],
        ["0.500", "0.250", "to", "0.750"],
        ["7"],
        ["b"],
        ["–"],
        ["12345"],
    ]


def test_very_small_and_large_numbers_stay_readable(tmp_path):
    table = Table(name="t", caption="c", columns=("p", "q"), rows=((1.23456e-7, 0.0), (123456.7, -0.25)))
    parsed = report_of(tmp_path, lambda folder: Findings(title="T", tables=(table,)))
    assert [cell.strip() for cell in parsed.cells[-4:]] == ["1.23e-07", "0.000", "1.23e+05", "-0.250"]


def test_names_and_sentences_cannot_smuggle_markup_in(tmp_path):
    evil = "<script>alert(1)</script>"
    parsed = report_of(tmp_path, lambda folder: Findings(title=evil, summary=(evil,)), models=(evil,))
    assert not parsed.all("script")
    assert parsed.visible.count(evil) >= 3


def test_a_failed_analysis_shows_its_reason_and_traceback(tmp_path):
    parsed = report_of(tmp_path, lambda folder: 1 / 0)
    assert "Failed: ZeroDivisionError" in parsed.visible
    assert "Traceback (most recent call last)" in parsed.visible
    assert "toy 1.0" in parsed.visible


def test_a_skipped_analysis_shows_what_it_lacks(tmp_path):
    parsed = report_of(tmp_path, lambda folder: 1 / 0, needs=("features",))
    assert "Skipped: it needs features" in parsed.visible
    assert "Traceback" not in parsed.visible


@pytest.mark.parametrize("image", ["gone.png", "../secret.png", "text.png"])
def test_a_picture_that_is_missing_outside_or_no_png_is_reported_not_inlined(tmp_path, image):
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))

    def draw(folder):
        (folder / "text.png").write_text("no picture")
        figure = Figure(name="f", caption="c", image=image, data="f.csv")
        return Findings(title="T", figures=(figure,))

    parsed = report_of(tmp_path, draw)
    assert not parsed.all("img")
    assert f"made/{image} is missing" in parsed.visible


def test_a_report_can_be_written_again_from_the_folder_alone(tmp_path):
    report_of(tmp_path, lambda folder: Findings(title="T"))
    first = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert write_report(tmp_path).read_text() == first


def test_a_folder_without_findings_or_with_newer_ones_is_refused(tmp_path):
    with pytest.raises(PathError, match="run oaplug_analyze first"):
        write_report(tmp_path)
    (tmp_path / "findings.json").write_text('{"schema": 99}')
    with pytest.raises(PathError, match="upgrade oaplug"):
        write_report(tmp_path)
