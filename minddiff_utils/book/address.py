"""Where the project lies on the web; every page takes it from here."""

import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

GITHUB = "https://github.com/"


def find_repository(root: Path, settings: Mapping[str, object]) -> str:
    """Return the address that `_config.yml` gives, or that the checkout was cloned from.

    Parameters
    ----------
    root : Path
        The project's folder.
    settings : mapping
        Of `_config.yml`, with `url` in `repository` if it names one.

    Returns
    -------
    str
        As `web_address` does.
    """
    given = settings.get("repository")
    url = given.get("url") if isinstance(given, Mapping) else ""
    return web_address(str(url or _origin(root)))


def web_address(remote: str) -> str:
    """Return where people read a git remote; "" if it lies on this machine.

    Both forms that git knows are understood: https://host/name.git and git@host:name.git. A name
    or password in it is left out.
    """
    found = re.fullmatch(
        r"(?:https://|ssh://git@|git@)(?:[^@/]*@)?([^/:]+)[/:](.+?)(\.git)?/?", remote
    )
    return f"https://{found[1]}/{found[2]}" if found else ""


def _origin(root: Path) -> str:
    command = ["git", "remote", "get-url", "origin"]
    with suppress(OSError):
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
        return answer.stdout.strip()
    return ""


def clone_lines(url: str) -> str:
    """Return what a reader types to make the book, as a block of markdown.

    Parameters
    ----------
    url : str
        Of the repository; "" where it is not known.
    """
    clone = f"git clone {url} && cd {url.rsplit('/', 1)[-1]}\n" if url else ""
    where = "" if url else "In the folder of the project:\n\n"
    return f"{where}```bash\n{clone}make book\n```\n"


def chapter_links(url: str, name: str, files: Mapping[str, str]) -> str:
    """Return what can be done with a chapter's page: downloads, source, and where it can run.

    Parameters
    ----------
    url : str
        Of the repository; "" where it is not known.
    name : str
        Of the notebook in `notebooks/`, without its ending.
    files : mapping of label to file beside the page

    Returns
    -------
    str
        A line of markdown.
    """
    parts = [f"{{download}}`{label} <{file}>`" for label, file in files.items()]
    notebook = f"notebooks/{name}.ipynb"
    if url:
        parts.append(f"[source]({url}/blob/HEAD/{notebook})")
    if url.startswith(GITHUB):
        own = url.removeprefix(GITHUB)
        parts.append(
            f"[Colab](https://colab.research.google.com/github/{own}/blob/HEAD/{notebook})"
        )
        parts.append(f"[Binder](https://mybinder.org/v2/gh/{own}/HEAD?labpath={notebook})")
    return f"**Take it away:** {' · '.join(parts)} · [cite](/references.md)"
