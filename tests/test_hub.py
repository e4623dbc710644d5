"""Models by name: a hub on loopback stands in for the real one, and is then taken away."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from builders import ROOT, refuses
from loopback import serve

from minddiff_utils.book.plan import Plan
from minddiff_utils.book.record import model_revisions
from minddiff_utils.models import clip
from minddiff_utils.models import hub as module
from minddiff_utils.models import stable_diffusion as generator
from minddiff_utils.models.hub import CLIP_FILES, DIFFUSION_FILES, REVISIONS, clip_name, hub_name

DIFFUSION, GUIDE = "CompVis/stable-diffusion-v1-4", "openai/clip-vit-base-patch32"
WEIGHTS = "diffusion_pytorch_model.safetensors"


# -------------------------------------------------------------------------------- a hub of our own


@pytest.fixture(scope="module")
def published(tiny_models, tmp_path_factory):
    """The small models, laid out as the hub's repositories are, with what must stay there."""
    root = tmp_path_factory.mktemp("published")
    diffusion, guide = root / "diffusion", root / "guide"
    shutil.copytree(tiny_models / "stable_diffusion", diffusion)
    shutil.copytree(tiny_models / "clip_guide", guide)
    index = json.loads((diffusion / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (diffusion / "model_index.json").write_text(json.dumps(index))
    # The hub has the older pair of files in the place of tokenizer.json.
    tokens = diffusion / "tokenizer" / "tokenizer.json"
    bpe = json.loads(tokens.read_text())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    (diffusion / "tokenizer/vocab.json").write_text(json.dumps(bpe["vocab"]))
    (diffusion / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    tokens.unlink()
    # And whole numbers for the sizes of pictures.
    settings = json.loads((guide / "preprocessor_config.json").read_text())
    settings |= {"size": 64, "crop_size": 64, "feature_extractor_type": "CLIPFeatureExtractor"}
    (guide / "preprocessor_config.json").write_text(json.dumps(settings))
    large = ["sd-v1-4.ckpt", "safety_checker/model.safetensors"]
    large += [f"unet/diffusion_pytorch_model.{suffix}" for suffix in ("bin", "fp16.safetensors")]
    for unwanted in (*map(diffusion.joinpath, large), guide / "pytorch_model.bin"):
        unwanted.parent.mkdir(exist_ok=True)
        unwanted.write_bytes(b"large")
    return {DIFFUSION: diffusion, GUIDE: guide}


@pytest.fixture(scope="module")
def hub(published):
    """Answers huggingface_hub's three questions: a revision, its files, a file."""
    with serve({}) as server:
        for name, folder in published.items():
            revision, api = REVISIONS[name], f"/api/models/{name}"
            about = {"id": name, "sha": revision}
            entries = []
            for path in filter(Path.is_file, folder.rglob("*")):
                file, size = str(path.relative_to(folder)), path.stat().st_size
                entries.append({"type": "file", "path": file, "oid": file, "size": size})
                server.files[f"/{name}/resolve/{revision}/{file}"] = path.read_bytes()
                server.headers[f"/{name}/resolve/{revision}/{file}"] = {"X-Repo-Commit": revision}
            server.files[f"{api}/revision/{revision}"] = json.dumps(about).encode()
            server.files[f"{api}/tree/{revision}"] = json.dumps(entries).encode()
        yield server


def environment(home, endpoint, offline="0"):
    """Variables of a process that sees this hub alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline}
    own |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}


FIND = """
import sys
from minddiff_utils.models.hub import CLIP_FILES, DIFFUSION_FILES, find_model
from minddiff_utils.io import InputError
for name in sys.argv[1:]:
    files = CLIP_FILES if "clip" in name else DIFFUSION_FILES
    try:
        print(find_model(name, files, ["config.json" if "clip" in name else "unet"]))
    except InputError as error:
        sys.exit(f"Error: {error}")
"""


def find(env, *names):
    """What a process of its own says when it looks for models."""
    command = [sys.executable, "-c", FIND, *names]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def cache(hub, tmp_path_factory):
    """A cache into which both models were downloaded by name."""
    home = tmp_path_factory.mktemp("home")
    done = find(environment(home, hub.url), DIFFUSION, GUIDE)
    assert done.returncode == 0, done.stderr
    return home


# ------------------------------------------------------------------------------- with the network


def test_download_takes_the_pinned_revision_and_no_other_weights(cache):
    for name in (DIFFUSION, GUIDE):
        folder = cache / f"hub/models--{name.replace('/', '--')}/snapshots/{REVISIONS[name]}"
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert not {f for f in found if f.endswith((".ckpt", ".bin", ".fp16.safetensors"))}
        assert not [f for f in found if f.startswith("safety_checker/model")]
        weights = {f"{part}/{WEIGHTS}" for part in ("unet", "vae")}
        weights |= {"text_encoder/model.safetensors"}
        assert (weights if name == DIFFUSION else {"model.safetensors"}) <= found


def test_models_load_by_name_without_a_network_once_downloaded(cache, tiny_models, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    named = generator.load_generator(DIFFUSION, "cpu", n_tokens=15)
    local = generator.load_generator(tiny_models, "cpu", n_tokens=15)
    assert named.fingerprint == local.fingerprint
    captions = [("a red house", "one blue cat")]
    torch.testing.assert_close(named.encode_captions(captions), local.encode_captions(captions))
    assert (named.guide.edge, named.guide.shortest) == (64, 64)
    pinned = clip.load_clip(f"{GUIDE}@{REVISIONS[GUIDE]}", "cpu")
    assert pinned.n_blocks == local.guide.n_blocks


def test_the_command_of_the_message_fills_a_folder_that_loads(hub, published, tmp_path):
    said = find(environment(tmp_path / "empty", hub.url, offline="1"), DIFFUSION).stderr
    (command,) = [line.strip() for line in said.splitlines() if line.strip().startswith("hf ")]
    program = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    words = command.replace('"', "").split()[1:]
    folder = tmp_path / "folder"
    how = {"env": environment(tmp_path / "home", hub.url), "capture_output": True}
    subprocess.run([*program, *words, "--local-dir", folder], check=True, **how)
    assert (folder / f"unet/{WEIGHTS}").exists() and not list(folder.rglob("*.ckpt"))
    loaded = generator.load_generator(folder, "cpu", guide=str(published[GUIDE]))
    assert loaded.n_tokens == 32


# ---------------------------------------------------------------------------- without the network


@pytest.mark.parametrize("name", [DIFFUSION, GUIDE, "owner/other@0123abc"])
def test_without_a_network_one_message_says_what_to_do(tmp_path, name):
    said = find(environment(tmp_path, "http://127.0.0.1:9", offline="1"), name)
    repository, _, revision = name.partition("@")
    revision = revision or REVISIONS[name]
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert said.stderr.count("Error") == 1 and "HF_HUB_OFFLINE is set" in said.stderr
    assert f"{repository} at revision {revision}" in said.stderr
    assert f"hf download {repository} --revision {revision} --include" in said.stderr
    assert "--local-dir FOLDER" in said.stderr


def test_a_refused_connection_is_told_at_once(tmp_path):
    with socket.socket() as taken:
        # Bound but not listening: whoever connects is refused.
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = find(environment(tmp_path, endpoint), GUIDE)
    assert "Connection refused" in said.stderr and f"hf download {GUIDE}" in said.stderr
    assert "Retrying" not in said.stderr  # as huggingface_hub does by itself, for half a minute


# ------------------------------------------------------------------------------------------- names


def test_names_are_taken_apart(tmp_path, monkeypatch):
    for path in ("/a/b", "../models", "./a/b", "models", "a/b/c", "~/models"):
        assert hub_name(path) is None
    assert hub_name(GUIDE) == (GUIDE, REVISIONS[GUIDE])
    assert hub_name("owner/name@refs/pr/7") == ("owner/name", "refs/pr/7")
    monkeypatch.chdir(tmp_path)
    Path(GUIDE).mkdir(parents=True)
    assert hub_name(GUIDE) is None  # a folder of that name wins
    refuses(r"no revision is pinned.*weights/sd@COMMIT.*CompVis", hub_name, "weights/sd")


def test_the_clip_of_each_role(tmp_path):
    assert clip_name(tmp_path, "judge") == str(tmp_path / "clip_judge")
    assert clip_name(tmp_path, "guide", "some/folder") == "some/folder"
    assert clip_name(DIFFUSION, "guide") == GUIDE
    assert clip_name(DIFFUSION, "judge") == "openai/clip-vit-large-patch14"
    (tmp_path / "model_index.json").touch()
    assert clip_name(tmp_path, "guide") == GUIDE


def test_a_folder_is_returned_as_it_is(tiny_models):
    folder = tiny_models / "clip_guide"
    assert module.find_model(folder, CLIP_FILES, ["config.json"]) == folder
    said, needed = r"lacks unet;.*stable-diffusion-v1-4", ["config.json", "unet"]
    refuses(said, module.find_model, folder, DIFFUSION_FILES, needed)


def test_a_run_records_the_revisions_of_models_with_names(tmp_path):
    given = {"models": DIFFUSION, "judge": "owner/judge@12ab"}
    plan = Plan("mine", tmp_path, given, ())
    expected = {DIFFUSION: REVISIONS[DIFFUSION], GUIDE: REVISIONS[GUIDE], "owner/judge": "12ab"}
    assert model_revisions(plan) == expected
    (tmp_path / "weights/small").mkdir(parents=True)
    for models in ("weights/small", "../models", ""):
        assert model_revisions(replace(plan, values={"models": models})) == {}
