"""Where the project lies is known in one place, or pages say "the folder of the project"."""

import subprocess

import pytest

from minddiff_utils.book.address import chapter_links, clone_lines, find_repository, web_address


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
def test_remotes_become_addresses_that_people_read(remote, address):
    assert web_address(remote) == address


def test_settings_come_before_the_remote(tmp_path):
    assert find_repository(tmp_path, {}) == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    remote = ["remote", "add", "origin", "git@github.com:one/two.git"]
    subprocess.run(["git", "-C", tmp_path, *remote], check=True)
    assert find_repository(tmp_path, {}) == "https://github.com/one/two"
    given = {"repository": {"url": "https://host.org/a/b"}}
    assert find_repository(tmp_path, given) == "https://host.org/a/b"


def test_pages_without_an_address_have_no_links_that_lead_nowhere():
    files = {"this notebook": "03_stage1.ipynb"}
    assert "git clone" not in clone_lines("") and "make book" in clone_lines("")
    text = chapter_links("", "03_stage1", files)
    assert "{download}`this notebook <03_stage1.ipynb>`" in text and "https" not in text
    somewhere = chapter_links("https://github.com/one/two", "03_stage1", files)
    assert "one/two/blob/HEAD/notebooks/03_stage1.ipynb" in somewhere
    assert "colab." in somewhere and "mybinder.org/v2/gh/one/two" in somewhere
    assert "colab" not in chapter_links("https://host.org/a/b", "03_stage1", files)
    assert "git clone https://host.org/a/b && cd b" in clone_lines("https://host.org/a/b")
