"""What people write is shown as they wrote it, wherever it goes: pages, data in pages, figures."""

import dataclasses
import io
import json

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from builders import ROOT
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_role import myst_role_plugin
from mdit_py_plugins.substitution import substitution_plugin
from test_figures_data import make_subject

from minddiff_utils.book import pages
from minddiff_utils.evaluation.tables import as_markdown, markdown_table
from minddiff_utils.figures import data as figures_data
from minddiff_utils.figures import decoding, reconstruction

NASTY = (
    r"a $\frac{$ sign", "costs $5, or $6", "<script>alert(1)</script>", "</script><!--<script>",
    r"a|b \| c\\", "**bold** _it_ `code`", "{ref}`x` {{ y }}", "[a](b) ![c](d)", "&lt; &amp; &",
    "~~no~~ H~2~ x^2^", "# one", "%d {0} \\", "a\tb\nc", "Ä漢🙂",
)  # fmt: skip
parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
for plugin in (dollarmath_plugin, myst_role_plugin, substitution_plugin):
    parser.use(plugin)


@given(st.sampled_from(NASTY) | st.text("ab \\`*_[]{}<>()#&~^$|!%\"'\n/:é", min_size=1))
def test_pages_and_their_data_show_a_text_as_it_is(text):
    table = pd.DataFrame({"n": ["1"]}, pd.Index([as_markdown(text)], name="trait"))
    cell = BeautifulSoup(parser.render(markdown_table(table)), "html.parser").find("td")
    assert cell.get_text() == " ".join(text.split()) and not cell.find(True)
    data = {"methods": {"m": text}, "shown": ["m"], "metrics": {}, "pictures": []}
    page = pages.render(ROOT / "book", "gallery.md", {"gallery": data, "subject": "subj01"})
    inside = page.split("```{raw} html\n")[1].split("\n```")[0]
    scripts = BeautifulSoup(inside, "html.parser").find_all("script")
    assert len(scripts) == 2 and json.loads(scripts[0].string)["methods"]["m"] == text


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_draw_a_text_as_it_is():
    subject = make_subject(places=True)
    first, second = subject.roi.values()
    subject = dataclasses.replace(subject, roi={NASTY[0]: first, NASTY[1]: second})
    rows = [("z", name, 0.5) for name in NASTY]
    table = pd.DataFrame(rows, columns=["feature_space", "roi", "correlation"])
    pictures = subject.stimuli.pictures(range(9))
    for figure in (
        figures_data.ceiling_by_roi(subject, 3.0),
        figures_data.roi_voxels(subject),
        reconstruction.picture_grid({NASTY[0]: pictures}, captions=NASTY[:9]),
        decoding.roi_accuracy(table),
    ):
        figure.savefig(io.BytesIO())
        texts = figure.findobj(Text)
        assert not any(text.get_parse_math() for text in texts)
        assert NASTY[0] in {text.get_text() for text in texts}
