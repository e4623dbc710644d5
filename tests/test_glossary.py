"""Terms are linked at their first use in prose, and nowhere else."""

import pytest
from dummy_project import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minddiff_utils.book.glossary import link_notebook, link_text, read_terms
from minddiff_utils.io import InputError

TERMS = ["noise ceiling", "noise", "voxel", "ROI", "latent"]


def test_first_use_is_linked_and_later_ones_are_not():
    text, left = link_text("A voxel is small. Another voxel too.", TERMS)
    assert text == "A {term}`voxel` is small. Another voxel too."
    assert left == ["noise ceiling", "noise", "ROI", "latent"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Voxels answer.", "{term}`Voxels <voxel>` answer."),
        ("The noise ceiling.", "The {term}`noise ceiling`."),
        ("The noise\nceiling.", "The {term}`noise\nceiling <noise ceiling>`."),
        ("Noise ceilings.", "{term}`Noise ceilings <noise ceiling>`."),
        ("Noise, not its ceiling.", "{term}`Noise <noise>`, not its ceiling."),
        ("An ROI, not a roi.", "An {term}`ROI`, not a roi."),
        ("**A voxel**", "**A {term}`voxel`**"),
        (":::{note}\nA voxel.\n:::", ":::{note}\nA {term}`voxel`.\n:::"),
    ],
)
def test_forms_of_a_term(text, expected):
    assert link_text(text, TERMS)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "# A voxel",
        "| voxel | noise |\n|---|---|",
        "`voxel` and {cite}`noise` and `` a `voxel` ``",
        "```python\nvoxel = noise\n```",
        "```{figure} voxel.png\n:alt: a voxel\n\nThe voxel.\n```",
        "$voxel$ and $$\nnoise\n$$ (voxel)",
        "[the voxel](voxel.md) and ![noise](noise.png)",
        "<img alt='voxel'>",
        "(voxel)=",
        ":label: voxel",
        "voxelwise supervoxel voxel-wise",
    ],
)
def test_what_is_no_prose_stays_as_it_is(text):
    assert link_text(text, TERMS) == (text, TERMS)


def test_a_notebook_links_each_term_once_and_leaves_code_alone():
    cells = [
        new_markdown_cell("# Voxel"),
        new_code_cell("voxel = 1  # a voxel"),
        new_markdown_cell("The voxel and its noise ceiling."),
        new_markdown_cell("A voxel, a latent."),
    ]
    page = link_notebook(new_notebook(cells=cells), TERMS)
    assert [cell.source for cell in page.cells] == [
        "# Voxel",
        "voxel = 1  # a voxel",
        "The {term}`voxel` and its {term}`noise ceiling`.",
        "A voxel, a {term}`latent`.",
    ]


def test_terms_of_the_book_are_read_in_order_and_each_once():
    terms = read_terms(ROOT / "book" / "glossary.md")
    assert len(terms) == len(set(terms)) > 30
    wanted = {"voxel", "beta", "ROI", "noise ceiling", "latent", "conditioning", "stimulus"}
    assert wanted | {"repetition", "identification accuracy"} <= set(terms)
    first = [terms.index(term) for term in ("ablation", "latent", "voxel")]
    assert first == sorted(first)


def test_a_page_without_glossary_is_named(tmp_path):
    (tmp_path / "g.md").write_text("# Words\n\nvoxel\n")
    with pytest.raises(InputError, match="g.md has no block"):
        read_terms(tmp_path / "g.md")
