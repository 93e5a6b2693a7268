"""Reports as HTML: a page that holds nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import amct_pytorch as amct
import pytest
from amct_pytorch._report_names import printable
from report_files import NASTY, Odd, Skips, calibrated_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return calibrated_files(tmp_path_factory.mktemp("files"))


class Page(HTMLParser):
    """What a page has of elements, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(tmp_path: Path, files: tuple[Path, Path], compare: Path | None = None) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    amct.report(*files, path, compare=compare)
    text = path.read_text("utf-8")
    return text, Page(text)


class TestHtml:
    def test_nothing_outside(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        text, page = page_of(tmp_path, files, compare=files[0])
        for tag, attributes in page.elements:
            for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
                assert re.match(r"(data:|#|$)", attributes.get(name) or ""), (tag, attributes)
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
        assert not re.search(r"url\(|@import|https?://", text)
        assert [tag for tag, _ in page.elements].count("script") == 1

    def test_links_lead_somewhere(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        _, page = page_of(tmp_path, files)
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids))
        links = {a["href"] for tag, a in page.elements if tag == "a"}
        assert links
        assert {link and link.removeprefix("#") for link in links} <= set(ids)

    def test_every_chart_says_what_it_shows(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        _, page = page_of(tmp_path, files)
        charts = [a for tag, a in page.elements if tag == "svg"]
        assert len(charts) == 4 + 3 * 4
        assert all(a["role"] == "img" and a["aria-label"] for a in charts)

    def test_names_stay_text(self, tmp_path: Path) -> None:
        files = calibrated_files(tmp_path, Odd(NASTY), layers=NASTY)
        text, page = page_of(tmp_path, files)
        assert [tag for tag, _ in page.elements].count("script") == 1
        assert "img" not in {tag for tag, _ in page.elements}
        assert {"x", "alert(1)"}.isdisjoint(value for _, a in page.elements for value in a.values())
        for name in NASTY:
            assert printable(name) in page.text
        assert not {"\x1b", "\x00", "\u202e"} & set(text)

    def test_red_is_for_what_is_missing(self, tmp_path: Path) -> None:
        files = calibrated_files(tmp_path, Skips())
        path = tmp_path / "report.html"
        amct.report(*files, path, config_file=tmp_path / "config.json")
        page = Page(path.read_text("utf-8"))
        layers = [a for tag, a in page.elements if tag == "details"]
        assert [a["class"] for a in layers] == ["layer look", "layer good", "layer bad", "layer bad"]
        assert ["open" in a for a in layers] == [False, False, True, False]
        assert "No batch reached it" in page.text

    def test_the_same_again(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        assert page_of(tmp_path, files)[0] == page_of(tmp_path, files)[0]

    @pytest.mark.parametrize("settings", [
        {"act_algo": "mse", "dst_type": "FP8_E4M3"},
        {"act_algo": "mse", "dst_type": "HIF8", "quant_granularity": "per_tensor"},
        {"num_bits": 4, "quant_granularity": "per_head", "head_num": 2},
    ])  # fmt: skip
    def test_other_formats(self, settings: dict[str, object], tmp_path: Path) -> None:
        record, counts = calibrated_files(tmp_path)
        other = tmp_path / "other.txt"
        amct.solve_counts(counts, other, **settings)
        assert page_of(tmp_path, (record, counts), other)[1].text
        assert page_of(tmp_path, (other, counts), record)[1].text

    def test_observed_per_tensor(self, tmp_path: Path) -> None:
        _, page = page_of(tmp_path, calibrated_files(tmp_path, definition=""))
        assert "Channels" not in page.text
