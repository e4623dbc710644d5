"""Pages made from a run's files, the gallery and the first one: they say what the files hold."""

import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from builders import ROOT
from PIL import Image

from minddiff_utils.book import pages
from minddiff_utils.evaluation.metrics import read_metrics
from minddiff_utils.io import method_file
from minddiff_utils.reconstruction.results import read_pictures, write_pictures

IDS = [40, 7, 22, 13, 5, 61, 30, 9, 2]
METHODS = ("mean", "stage2", "stage1")
SHOWN = ["stage1", "stage2", "mean"]
BOOK = ROOT / "book"
STRIPS = "_static/gallery/subj01"


@pytest.fixture
def run(tmp_path):
    """A run with nine pictures of 16 × 16 pixels, each method's of one flat colour of its own."""
    folder = tmp_path / "subj01"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("truth", *METHODS, "takagi"):  # the last one is of an earlier run: no numbers
        colours = rng.integers(0, 256, (len(IDS), 1, 1, 3))
        pictures = np.broadcast_to(colours, (len(IDS), 16, 16, 3)).astype(np.uint8)
        write_pictures(method_file(folder, name), IDS, pictures)
    rated = product(["subj01"], [*METHODS, "prior"], IDS, ["ssim", "clip_judge", "pcc"])
    table = pd.DataFrame(rated, columns=["subject", "method", "stimulus_id", "metric"])
    table = table.assign(value=rng.uniform(size=len(table)))  # of `prior`, numbers without pictures
    table.to_csv(folder / "metrics.csv", index=False)
    return tmp_path


@pytest.fixture
def book(tmp_path):
    """Folder of a book without pages."""
    (tmp_path / "book/subj01").mkdir(parents=True)
    (tmp_path / "book/templates").symlink_to(BOOK / "templates")
    return tmp_path / "book"


def test_strips_hold_the_pictures_in_their_order(run, book):
    pages.add_gallery(run, "subj01", book)
    strips = book / "static/gallery/subj01"
    assert len(list(strips.glob("*.jpg"))) == len(IDS)
    wanted = [read_pictures(method_file(run / "subj01", name)) for name in ("truth", *SHOWN)]
    for row in range(len(IDS)):
        strip = np.asarray(Image.open(strips / f"{row:04d}.jpg"))
        assert strip.shape == (16, 16 * 4, 3)
        for part, pictures in enumerate(wanted):
            middle = strip[4:12, part * 16 + 4 : part * 16 + 12].mean(axis=(0, 1))
            np.testing.assert_allclose(middle, pictures[row, 0, 0], atol=4)


def test_the_page_holds_the_numbers_of_the_table(run, book):
    path = run / "subj01/metrics.csv"
    table = pd.read_csv(path)
    table.loc[(table.stimulus_id == 22) & (table.metric == "pcc"), "value"] = np.nan
    table.to_csv(path, index=False)
    known = table.set_index(["stimulus_id", "method", "metric"])["value"]
    pages.add_gallery(run, "subj01", book)
    page = (book / "subj01/gallery.md").read_text()
    assert "NaN" not in page and "All 9 test images" in page
    found = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page)[1])
    assert [picture["id"] for picture in found["pictures"]] == IDS
    assert list(found["metrics"]) == ["clip_judge", "ssim", "pcc"]
    assert list(found["methods"]) == [*SHOWN, "prior"] and found["shown"] == SHOWN
    assert found["methods"]["stage1"] == "stage 1"
    for picture in found["pictures"]:
        for method in found["methods"]:
            for metric, value in zip(found["metrics"], picture["values"][method], strict=True):
                expected = known[picture["id"], method, metric]
                missing = picture["id"] == 22 and metric == "pcc"
                assert value is None if missing else value == pytest.approx(expected, abs=1e-4)


def front(run, shown=SHOWN):
    found = pages.gallery_of(read_metrics(run, ["subj01"]), IDS, shown)
    text = pages.front_page(found, "subj01", BOOK)
    return BeautifulSoup(text, "html.parser").find_all("figure")


def test_first_page_shows_what_its_rule_says(run):
    border, regular, extremes = front(run)
    shown = [tag.text for tag in regular.select(".front-name")]
    assert shown == [f"no. {number}" for number in sorted(IDS)[:8]]
    assert "8 of 9 test images of subj01, in the order" in regular.figcaption.text
    table = pd.read_csv(run / "subj01/metrics.csv")
    judged = table[table.metric == "clip_judge"].pivot_table("value", "stimulus_id", "method")
    ranked = judged.stage2.sort_values().index.to_list()
    shown = [re.match(r"Image (\d+)", image["alt"])[1] for image in extremes.select("img")[::3]]
    assert [int(number) for number in shown] == [ranked[-1], ranked[4], ranked[0]]
    typical = (judged.stage2 - judged.stage1).sort_values().index[4]
    assert f"Image {typical} of subj01: of all 9 test images" in border.figcaption.text
    full, seen = border.select("img")
    assert full["src"] == seen["src"] == f"{STRIPS}/large/{IDS.index(typical):04d}.jpg"
    assert full["style"] == f"object-position:{200 / 3:.4g}% 0"
    assert seen["style"] == "object-position:0% 0"
    assert [option.text for option in border.select("option")] == ["seen", "stage 1"]
    names = [tag.text.split(",")[0] for tag in extremes.select(".front-name")]
    assert names == ["best", "median", "worst"]
    for image in [*regular.select("img"), *extremes.select("img")]:
        number, label = re.match(r"Image (\d+): (.+)", image["alt"]).groups()
        assert image["src"] == f"{STRIPS}/{IDS.index(int(number)):04d}.jpg"
        part = {"as seen": 0, "stage 1": 1, "stage 2": 2}[label]
        assert image["style"] == f"object-position:{100 * part / 3:.4g}% 0"


def test_first_page_works_without_stage_2(run):
    border, regular, _ = front(run, ["stage1", "mean"])
    assert "right: stage 1" in border.text
    assert [tag.text for tag in regular.select(".front-label")][:2] == ["seen", "stage 1"]


def test_of_many_pictures_each_nth_is_taken():
    pictures = [{"id": 2 * row, "values": {"stage1": [row / 20]}} for row in range(20)]
    found = {"pictures": pictures, "shown": ["stage1"], "metrics": ["clip_judge"]}
    page = BeautifulSoup(pages.front_page(found, "subj01", BOOK), "html.parser")
    names = [tag.text for tag in page.select(".front-name")]
    assert names[:8] == [f"no. {4 * place}" for place in range(8)]
    caption = page.select(".front-pictures figcaption")[0].text
    assert "8 of 20 test images of subj01, one in 2, in the order" in caption


def test_costs_are_those_of_the_records(tmp_path):
    for subject, factor in (("anna", 1), ("ben", 10)):
        (tmp_path / subject).mkdir()
        times = {"02_second": 65.4 * factor, "01_first": 3599.0 * factor}
        known = {name: {"wall_time_s": took} for name, took in times.items()}
        record = {"machine": f"{factor} cores", "notebooks": known}
        (tmp_path / subject / "provenance.json").write_text(json.dumps(record))
    text = pages.cost_table(tmp_path, ["anna", "ben"], BOOK)
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines()]
    assert rows[0] == ["chapter", "anna", "ben"]
    assert rows[2:4] == [["machine", "1 cores", "10 cores"], ["`01_first`", "0:59:59", "9:59:50"]]
    assert rows[4] == ["`02_second`", "0:01:05", "0:10:54"]
    assert rows[5:] == [["**all chapters**", "**1:01:04**", "**10:10:44**"]]
