"""The gallery shows the pictures and numbers of the run's files; the first page keeps its rule."""

import json
import re

import h5py
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minddiff_utils.book import gallery
from minddiff_utils.io import InputError

IDS = [40, 7, 22, 13, 5, 61, 30, 9, 2]
METHODS = ("mean", "stage2", "stage1")


@pytest.fixture
def run(tmp_path):
    """A run with nine pictures of 16 × 16 pixels, each method's of one flat colour of its own."""
    folder = tmp_path / "subj01"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "reconstructions.h5", "w") as file:
        file["stimulus_id"] = IDS
        for name in ("truth", *METHODS):
            colours = rng.integers(0, 256, (len(IDS), 1, 1, 3))
            file[name] = np.broadcast_to(colours, (len(IDS), 16, 16, 3)).astype(np.uint8)
        file["other"] = np.zeros((3, 2))  # not a method
    rows = [
        ("subj01", method, number, metric, rng.uniform())
        for method in METHODS
        for number in IDS
        for metric in ("ssim", "clip_judge", "pcc")
    ]
    columns = ["subject", "method", "stimulus_id", "metric", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "metrics.csv", index=False)
    return tmp_path


def test_strips_hold_the_pictures_in_their_order(run, tmp_path):
    methods = gallery.write_strips(run / "subj01/reconstructions.h5", tmp_path / "strips")
    assert methods == ["stage1", "stage2", "mean"]
    assert len(list((tmp_path / "strips").glob("*.jpg"))) == len(IDS)
    with h5py.File(run / "subj01/reconstructions.h5") as file:
        for row in range(len(IDS)):
            strip = np.asarray(Image.open(tmp_path / "strips" / f"{row:04d}.jpg"))
            assert strip.shape == (16, 16 * 4, 3)
            for part, name in enumerate(("truth", *methods)):
                middle = strip[4:12, part * 16 + 4 : part * 16 + 12].mean(axis=(0, 1))
                np.testing.assert_allclose(middle, file[name][row, 0, 0], atol=4)


@pytest.mark.parametrize(("n", "side"), [(3, 128), (201, 80)])
def test_large_pictures_become_small_and_smaller_if_there_are_many(tmp_path, n, side):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        for name in ("truth", "stage1"):
            file.create_dataset(name, (n, 150, 150, 3), np.uint8)
    gallery.write_strips(tmp_path / "r.h5", tmp_path / "strips")
    assert Image.open(tmp_path / "strips/0000.jpg").size == (2 * side, side)


def test_numbers_are_those_of_the_table(run):
    found = gallery.read_gallery(run, "subj01")
    table = pd.read_csv(run / "subj01/metrics.csv")
    table = table.set_index(["stimulus_id", "method", "metric"])["value"]
    assert [picture["id"] for picture in found["pictures"]] == IDS
    assert list(found["metrics"]) == ["clip_judge", "ssim", "pcc"]
    assert found["methods"]["stage1"] == "stage 1"
    for picture in found["pictures"]:
        for method in METHODS:
            for metric, value in zip(found["metrics"], picture["values"][method], strict=True):
                assert value == pytest.approx(table[picture["id"], method, metric], abs=1e-4)


def test_missing_numbers_are_empty_and_a_missing_picture_is_named(run):
    path = run / "subj01/metrics.csv"
    table = pd.read_csv(path)
    table.loc[(table.stimulus_id == 22) & (table.metric == "pcc"), "value"] = np.nan
    table.to_csv(path, index=False)
    found = gallery.read_gallery(run, "subj01")
    values = next(picture for picture in found["pictures"] if picture["id"] == 22)["values"]
    assert values["stage1"][2] is None and values["stage1"][0] is not None
    assert "NaN" not in json.dumps(found)
    table[table.stimulus_id != 13].to_csv(path, index=False)
    with pytest.raises(InputError, match="no numbers for stimulus 13.*05_metrics"):
        gallery.read_gallery(run, "subj01")


def test_damaged_or_empty_pictures_are_named(tmp_path):
    (tmp_path / "r.h5").write_bytes(b"no")
    with pytest.raises(InputError, match="r.h5 cannot be read.*03_stage1"):
        gallery.write_strips(tmp_path / "r.h5", tmp_path / "strips")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["truth"] = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="e.h5 holds no reconstructions"):
        gallery.write_strips(tmp_path / "e.h5", tmp_path / "strips")


def test_page_holds_its_data_whatever_the_labels_are(run):
    found = gallery.read_gallery(run, "subj01")
    found["methods"]["mean"] = "</script><b>"
    page = gallery.gallery_page(found, "subj01", "../_static/gallery/subj01/", "../gallery.js")
    data = re.search(r'id="gallery-data">(.*?)</script>', page)[1]
    assert json.loads(data) == {**found, "strips": "../_static/gallery/subj01/"}


@given(n=st.integers(1, 1000), k=st.integers(1, 12))
def test_spread_is_even_and_begins_with_the_first(n, k):
    places, step = gallery.spread(n, k)
    assert list(places) == [i * step for i in range(min(k, n))] and places[-1] < n


def front(run):
    text = gallery.front_html(gallery.read_gallery(run, "subj01"), "subj01", "strips/")
    return BeautifulSoup(text, "html.parser").find_all("figure")


def test_first_page_shows_what_its_rule_says(run):
    regular, extremes = front(run)
    assert [tag.text for tag in regular.select(".front-name")] == [
        f"no. {number}" for number in sorted(IDS)[:8]
    ]
    assert "The first 8 of the 9 test pictures of subj01" in regular.figcaption.text
    table = pd.read_csv(run / "subj01/metrics.csv")
    judged = table[(table.method == "stage2") & (table.metric == "clip_judge")]
    ranked = judged.sort_values("value").stimulus_id.to_list()
    shown = [re.match(r"Picture (\d+)", image["alt"])[1] for image in extremes.select("img")[::3]]
    assert [int(number) for number in shown] == [ranked[-1], ranked[4], ranked[0]]
    assert [tag.text.split(",")[0] for tag in extremes.select(".front-name")] == [
        "best",
        "median",
        "worst",
    ]
    for figure in (regular, extremes):
        for image in figure.select("img"):
            number, label = re.match(r"Picture (\d+): (.+)", image["alt"]).groups()
            assert image["src"] == f"strips/{IDS.index(int(number)):04d}.jpg"
            part = {"as seen": 0, "stage 1": 1, "stage 2": 2}[label]
            assert image["style"] == f"object-position:{100 * part / 3:.4g}% 0"


def test_first_page_names_the_step_and_works_without_stage_2_or_judge(run):
    with h5py.File(run / "subj01/reconstructions.h5", "a") as file:
        del file["stage2"]
    path = run / "subj01/metrics.csv"
    table = pd.read_csv(path)
    table[table.metric != "clip_judge"].to_csv(path, index=False)
    (regular,) = front(run)
    assert [tag.text for tag in regular.select(".front-label")][:2] == ["seen", "stage 1"]


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (5, "Every test picture"),
        (8, "Every test picture"),
        (10, "The first 8 of the 10 test pictures"),
        (64, "Every eighth test picture"),
        (20, "Every second test picture, from the first on until there are eight,"),
    ],
)
def test_the_rule_is_said_as_it_is_kept(n, said):
    places, step = gallery.spread(n)
    assert gallery._which(n, len(places), step) == said


@pytest.mark.parametrize(
    ("number", "said"), [(8, "eighth"), (12, "12th"), (22, "22nd"), (112, "112th"), (123, "123rd")]
)
def test_steps_are_said_as_people_say_them(number, said):
    assert gallery._ordinal(number) == said
