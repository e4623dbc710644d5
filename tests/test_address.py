"""Where the project lies is known in one place, or pages say "the folder of the project"."""

import subprocess

import pytest
from builders import ROOT

from minddiff_utils.book.build import find_repository
from minddiff_utils.book.pages import load_template


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/someone/minddiffuser.git", "https://github.com/someone/minddiffuser"),
        ("git@github.com:someone/minddiffuser.git", "https://github.com/someone/minddiffuser"),
        ("ssh://git@gitlab.com/group/sub/book", "https://gitlab.com/group/sub/book"),
        ("https://user:secret@host.org/a/b.git/", "https://host.org/a/b"),
        ("/home/me/project", ""),
        ("../project", ""),
        ("", ""),
    ],
)
def test_remotes_become_addresses_that_people_read(tmp_path, remote, address):
    assert find_repository(tmp_path, {"repository": {"url": remote}}) == address


def test_settings_come_before_the_remote(tmp_path):
    assert find_repository(tmp_path, {}) == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    remote = ["remote", "add", "origin", "git@github.com:one/two.git"]
    subprocess.run(["git", "-C", tmp_path, *remote], check=True)
    assert find_repository(tmp_path, {}) == "https://github.com/one/two"
    given = {"repository": {"url": "https://host.org/a/b"}}
    assert find_repository(tmp_path, given) == "https://host.org/a/b"


def test_pages_without_an_address_have_no_links_that_lead_nowhere():
    links, clone = (load_template(ROOT / "book", f"{name}.md") for name in ("take_away", "clone"))
    lines = clone.render(url="")
    assert "git clone" not in lines and "```bash\nmake book\n```" in lines
    given = {"name": "03_stage1", "files": {"this notebook": "03_stage1.ipynb"}}
    text = links.render(given, url="")
    assert "{download}`this notebook <03_stage1.ipynb>`" in text and "https" not in text
    assert "\n" not in text and text.endswith(" · [cite](/references.md)")
    somewhere = links.render(given, url="https://github.com/one/two")
    assert "one/two/blob/HEAD/notebooks/03_stage1.ipynb" in somewhere
    assert "colab." in somewhere and "mybinder.org/v2/gh/one/two" in somewhere
    assert "colab" not in links.render(given, url="https://host.org/a/b")
    assert "git clone https://host.org/a/b && cd b\n" in clone.render(url="https://host.org/a/b")
