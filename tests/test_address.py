"""Where the project lies is known in one place, or pages say "the folder of the project"."""

import subprocess

import pytest
from builders import ROOT

from minddiff_utils.book.build import find_repository
from minddiff_utils.book.pages import render

HOME = "https://github.com/someone/book"
REMOTES = {f"{HOME}.git": HOME, "git@github.com:someone/book.git": HOME, "/home/me/book": ""}
REMOTES |= {"ssh://git@gitlab.com/group/sub/book": "https://gitlab.com/group/sub/book"}
REMOTES |= {"https://user:secret@host.org/a/b.git/": "https://host.org/a/b", "../book": "", "": ""}


@pytest.mark.parametrize(("remote", "address"), REMOTES.items())
def test_remotes_become_addresses_that_people_read(tmp_path, remote, address):
    assert find_repository(tmp_path, {"repository": {"url": remote}}) == address


def test_settings_come_before_the_remote(tmp_path):
    assert find_repository(tmp_path, {}) == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    remote = ["remote", "add", "origin", "git@github.com:one/two.git"]
    subprocess.run(["git", "-C", tmp_path, *remote], check=True)
    assert find_repository(tmp_path, {}) == "https://github.com/one/two"
    assert find_repository(tmp_path, {"repository": {"url": HOME}}) == HOME


def test_pages_without_an_address_have_no_links_that_lead_nowhere():
    def shown(name, url):
        given = {"name": "03_stage1", "files": {"this notebook": "03_stage1.ipynb"}, "url": url}
        return render(ROOT / "book", f"{name}.md", given)

    assert shown("clone", "").endswith("\n\n```bash\nmake book\n```")
    end = " {download}`this notebook <03_stage1.ipynb>` · [cite](/references.md)"
    assert shown("take_away", "").endswith(f":**{end}")
    somewhere = shown("take_away", "https://github.com/one/two")
    assert "one/two/blob/HEAD/notebooks/03_stage1.ipynb" in somewhere
    assert "colab." in somewhere and "mybinder.org/v2/gh/one/two" in somewhere
    assert "colab" not in shown("take_away", "https://host.org/a/b")
    assert "git clone https://host.org/a/b && cd b\n" in shown("clone", "https://host.org/a/b")
