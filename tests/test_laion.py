"""LAION-fMRI: the reader against a naive one, the real split files, and what is refused."""

import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from builders import files_in, refuses, run_cli
from loopback import serve
from PIL import Image

from minddiff_utils.datasets import fetch, load_subject, noise_ceiling, prepare_fold
from minddiff_utils.datasets.laion import LaionTree, read_split
from minddiff_utils.datasets.recording import recording_files

SHAPE, SIDE = (7, 6, 5), 24
AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])
GLM = "derivatives/glmsingle-tedana/{0}/"
SESSION = GLM + "ses-{1:02d}/func/{0}_ses-{1:02d}_task-images_"
BETAS = SESSION + "space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
TRIALS = SESSION + "desc-SingletrialBetas_trials.tsv"
CEILING = GLM + "{0}_task-images_space-T1w_desc-Noiseceiling4rep_statmap.nii.gz"
ROIS, METADATA = "derivatives/atlases/{0}/rois/", "stimuli/task-images_metadata.csv"
CAPTIONS, PICTURES = "stimuli/task-images_desc-captions.csv", "stimuli/task-images_stimuli.h5"
# Where each person's own pictures carry another number than the person: as in the real files.
PEOPLE = {"sub-01": "p01", "sub-03": "p04"}
REAL = Path(__file__).parents[2] / "shared/data/laion_splits"


def save(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def picture_names(n_own, n_shared):
    """Names and owners, in an order that is not sorted."""
    rows = [(f"shared_12rep_LAION_cluster_{k}_i0.jpg", "all") for k in range(n_shared)]
    for kind in ("shape", "illusion-classic"):
        rows += [(f"shared_4rep_OOD_{kind}_thing_{k}.png", "all") for k in range(3)]
    for person, mark in PEOPLE.items():
        rows += [(f"unique_LAION_initial_cluster_{k}_i0_{mark}.jpg", person) for k in range(n_own)]
    return rows[::-1]


def encoded(k, transparent):
    """A picture of two colours, as JPEG, or as PNG with holes."""
    rng = np.random.default_rng(k)
    colours = np.repeat(np.repeat(rng.integers(0, 256, (1, 2, 4), np.uint8), SIDE, 0), SIDE // 2, 1)
    stored = io.BytesIO()
    if transparent:
        Image.fromarray(colours).save(stored, "PNG")
    else:
        Image.fromarray(colours[..., :3]).save(stored, "JPEG")
    return stored.getvalue(), colours


def two_lines(name, place):
    return f'caption {place} of "{name}",\u2028 two lines'


def write_stimuli(root, rows):
    (root / "stimuli").mkdir(parents=True)
    table = pd.DataFrame(rows, columns=["image_name", "participant"])
    use = np.where(table.participant == "all", "shared", "unique")
    table.assign(dataset="LAION", unique_or_shared=use).to_csv(root / METADATA, index=False)
    texts = [
        (name, place, "human" if place else "ai", two_lines(name, place) * (place != 3))
        for name, _ in rows
        for place in (2, 0, 1, 3)
    ]
    columns = ["image_name", "caption_idx", "source", "caption"]
    pd.DataFrame(texts, columns=columns).to_csv(root / CAPTIONS, index=False)
    with h5py.File(root / PICTURES, "w") as file:
        images = file.create_dataset("images", len(rows), h5py.vlen_dtype(np.uint8))
        for k, (name, _) in enumerate(rows):
            images[k] = np.frombuffer(encoded(k, name.endswith(".png"))[0], np.uint8)


def write_tree(root, n_own=10, n_shared=6, n_sessions=3, people=tuple(PEOPLE)):
    """Write a small tree; voxels answer to the colours of the pictures."""
    rows, rng = picture_names(n_own, n_shared), np.random.default_rng(0)
    write_stimuli(root, rows)
    colours = np.array([encoded(k, False)[1][0, [0, -1], :3].ravel() for k in range(len(rows))])
    general = rng.random(SHAPE) < 0.5
    masks = {"laion/laion-general": general, "laion/laion-EVC": general & (rng.random(SHAPE) < 0.5)}
    masks |= {"retinotopy/V1v": rng.random(SHAPE) < 0.2, "faces/FFA-1": rng.random(SHAPE) < 0.2}
    masks |= {"localizer/MT": rng.random(SHAPE) < 0.2, "retinotopy/MT": rng.random(SHAPE) < 0.2}
    for person in people:
        for name, mask in masks.items():
            save(root / ROIS.format(person) / f"{name}.nii.gz", mask.astype(np.uint8))
        save(root / CEILING.format(person), rng.uniform(0, 60, SHAPE).astype(np.float32))
        own = [k for k, (_, owner) in enumerate(rows) if owner in ("all", person)]
        weights = rng.normal(size=(6, *SHAPE))
        shown = np.concatenate([rng.permutation(own) for _ in range(4)])
        for number, ids in enumerate(np.array_split(shown, n_sessions), start=1):
            x = np.moveaxis(np.tensordot(colours[ids], weights, 1), 0, -1) / 100
            x += rng.normal(size=x.shape)
            x[0, :2, number] = np.nan  # at the edge
            save(root / BETAS.format(person, number), x.astype(np.float32))
            lines = [f"ses-{number:02d}\t1\t{k}\t{rows[i][0]}" for k, i in enumerate(ids)]
            text = "\n".join(["session\trun\tbeta_index\tlabel", *lines[::-1]])
            (root / TRIALS.format(person, number)).write_text(text + "\n")
        write_splits(root, person, [rows[k][0] for k in own])
    return root


def write_splits(root, person, names):
    usual, odd = ([n for n in names if ("OOD" in n) == wanted] for wanted in (False, True))
    folds = {f"cluster_k5_{k}": usual[k::5] for k in range(5)} | {"tau": usual[::4], "ood": odd}
    folds |= {f"random_{k}": usual[k::6] for k in range(5)}
    for name, test in folds.items():
        train = [one for one in usual if one not in test]
        variant = {"variant_id": 0, "train_ids": train, "test_ids": test}
        path = root / f"splits/{person}/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": name, "variants": [variant]}))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("laion"))


@pytest.fixture
def copy(tmp_path):
    return write_tree(tmp_path / "tree", people=("sub-01",))


def load(path, **more):
    return load_subject("laion", path, "sub-01", **more)


def sets_of(subject):
    return [*subject.splits, *subject.test_sets]


def naive(root, masks, numbers=(1, 2, 3)):
    """Betas of the union of some masks, whole arrays at once, and the label of each row."""
    folder = root / ROIS.format("sub-01")
    inside = np.any([nib.load(folder / f"{name}.nii.gz").get_fdata() > 0 for name in masks], 0)
    x, labels = [], []
    for number in numbers:
        whole = nib.load(root / BETAS.format("sub-01", number)).get_fdata(dtype=np.float32)
        x.append(whole[inside].T)
        shown = pd.read_csv(root / TRIALS.format("sub-01", number), sep="\t")
        labels += shown.sort_values("beta_index").label.tolist()
    x = np.concatenate(x)
    return x, np.isfinite(x).all(axis=0), labels


def names_of(root):
    return pd.read_csv(root / METADATA).image_name.tolist()


# ----------------------------------------------------------------------------------- the reader


@pytest.mark.parametrize("rois", ["kastner2015", "V1v,FFA-1", "laion-general,localizer:MT"])
def test_voxel_for_voxel_against_whole_arrays(tree, tmp_path, rois):
    places = {"V1v": "retinotopy/V1v", "FFA-1": "faces/FFA-1", "localizer:MT": "localizer/MT"}
    masks = [places.get(name, "laion/laion-general") for name in rois.split(",")]
    x, finite, labels = naive(tree, masks)
    names = names_of(tree)
    for cache in (None, tmp_path):
        subject = load(tree, rois=rois, cache=cache)
        np.testing.assert_array_equal(subject.responses[:], x[:, finite])
        assert [names[one] for one in subject.stimulus_id] == labels
        assert subject.n_dropped == (~finite).sum() > 0
    assert subject.session.tolist() == sorted(subject.session) and set(subject.session) == {1, 2, 3}
    volume = nib.load(tree / BETAS.format("sub-01", 2)).get_fdata(dtype=np.float32)
    second = subject.responses[np.flatnonzero(subject.session == 2)]
    np.testing.assert_array_equal(second.T, volume[tuple(subject.voxel_ijk.T)])
    ceiling = nib.load(tree / CEILING.format("sub-01")).get_fdata()[tuple(subject.voxel_ijk.T)]
    np.testing.assert_allclose(noise_ceiling(subject.ncsnr, 4), ceiling, rtol=1e-4)


def test_a_voxel_is_in_the_smallest_region_that_holds_it(tree):
    rois = "laion-general,laion-EVC,V1v,retinotopy:MT"
    subject, folder = load(tree, rois=rois), tree / ROIS.format("sub-01")
    files = ["laion/laion-general", "laion/laion-EVC", "retinotopy/V1v", "retinotopy/MT"]
    masks = dict(zip(rois.split(","), files, strict=True))
    masks = {k: nib.load(folder / f"{name}.nii.gz").get_fdata() > 0 for k, name in masks.items()}
    assert list(subject.roi) == list(masks)
    for k, place in enumerate(map(tuple, subject.voxel_ijk)):
        holders = [name for name, mask in masks.items() if mask[place]]
        smallest = min(holders, key=lambda name: masks[name].sum())
        assert [name for name, mask in subject.roi.items() if mask[k]] == [smallest]


def test_pictures_and_captions(tree):
    subject, names = load(tree), names_of(tree)
    jpeg, png = (next(i for i, n in enumerate(names) if n.endswith(e)) for e in ("jpg", "png"))
    found = subject.stimuli.pictures([png, jpeg, png])
    assert found.shape == (3, SIDE, SIDE, 3) and found.dtype == np.uint8
    with Image.open(io.BytesIO(encoded(jpeg, False)[0])) as image:
        np.testing.assert_array_equal(found[1], np.asarray(image))
    colours = encoded(png, True)[1].astype(float)
    alpha = colours[..., 3:] / 255
    expected = alpha * colours[..., :3] + (1 - alpha) * 128
    np.testing.assert_allclose(found[0], expected, atol=1)
    assert alpha.max() < 1 and (found[0] == found[2]).all()
    (texts,) = subject.stimuli.captions([jpeg])
    assert texts == tuple(two_lines(names[jpeg], place) for place in (1, 2))


def test_the_first_split_and_further_test_sets(tree):
    names = names_of(tree)
    subject = load(tree, split="tau,random_0, cluster_k5,ood,tau")
    assert [split.name for split in subject.splits] == ["tau"]
    clusters = [f"cluster_k5_{k}" for k in range(5)]
    assert [split.name for split in subject.test_sets] == ["random_0", *clusters, "ood"]
    for split in sets_of(subject):
        file = json.loads((tree / f"splits/sub-01/{split.name}.json").read_text())["variants"][0]
        for part in ("train", "test"):
            ids = getattr(split, part)
            assert sorted(file[f"{part}_ids"]) == sorted(names[one] for one in ids)
    odd = subject.test_sets[-1].test
    assert set(odd) == subject.kind_of.keys() and not set(odd) & set(subject.stimulus_ids)
    kinds = [names[one].split("_")[3] for one in odd]
    assert [subject.kind_of[one] for one in odd] == kinds and len(set(kinds)) == 2
    for split in sets_of(subject):
        fold = prepare_fold(subject, split)
        assert fold.test_x.shape == (len(split.test), subject.responses.shape[1])
    assert load(tree, split="ood").splits[0].test.tolist() == odd.tolist()


def test_few_sessions_leave_out_what_they_did_not_show(tree):
    subject = load(tree, sessions="2", split="tau,ood")
    assert set(subject.session) == {2}
    everything = load(tree, split="tau,ood")
    for few, all_of in zip(sets_of(subject), sets_of(everything), strict=True):
        for part in ("train", "test"):
            seen = np.intersect1d(getattr(all_of, part), subject.stimulus_id)
            np.testing.assert_array_equal(getattr(few, part), seen)
    assert load(tree, sessions=2).session.max() == 2


def test_files_of_another_person_change_nothing(tree):
    own = {path.relative_to(tree).as_posix() for path in recording_files(tree, "sub-01")}
    assert BETAS.format("sub-01", 1) in own and "splits/sub-01/tau.json" in own and PICTURES in own
    assert not [name for name in own if "sub-03" in name]
    assert len(own) == len(recording_files(tree, "sub-03"))


# ------------------------------------------------------------------------------ what is refused


def nothing(root):
    """Leave the tree as it is: what is asked of it is wrong."""


def fault(said, change=nothing, **given):
    """What is done to a tree, what is then loaded from it, and what is said."""
    return change, given, said


def gone(name):
    return lambda root: (root / name).unlink()


def edited(name, old, new):
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new, 1))


def cut(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-2000])


def saved(name, values, affine=AFFINE):
    return lambda root: save(root / name, values, affine)


def split_into(name, **parts):
    """Replace the training or test pictures of a split."""

    def change(root):
        content = json.loads((root / name).read_text())
        content["variants"][0] |= parts
        (root / name).write_text(json.dumps(content))

    return change


def faults():
    betas, trials = BETAS.format("sub-01", 2), TRIALS.format("sub-01", 2)
    first = "ses-02\t1\t0\t"
    tau, mask = "splits/sub-01/tau.json", ROIS.format("sub-01") + "retinotopy/V1v.nii.gz"
    ceiling, high = CEILING.format("sub-01"), np.full(SHAPE, 120, np.float32)
    own, other = (f"unique_LAION_initial_cluster_3_i0_{who}.jpg" for who in PEOPLE.values())
    ones, moved = np.ones(SHAPE, np.uint8), AFFINE + np.eye(4, k=3) * 3
    table = "trials.tsv has {} trials with 29 .*; expected beta_index 0 to 28, one a volume of"
    theirs = f"tau.json has 1 pictures that sub-01 never sees, such as {other}; expected the split"
    both = f"tau.json has 1 test pictures that train, too, such as {own}; expected none"
    shape = r"V1v.nii.gz has shape \(3, 6, 5\); expected \(7, 6, 5\)"
    grid = "V1v.nii.gz is on another grid than the betas: .* voxels apart. Resample"
    yield fault("ses-02.*is missing; .* sessions 1, 3,", gone(betas))
    yield fault("is missing; .* sessions none, and", lambda r: (r / "derivatives").rename(r / "d"))
    yield fault("1 to 30; 31 to 34 are held out", sessions="1,31")
    yield fault("protocol=982 is for NSD; .* `split`", protocol=982)
    yield fault("ses-02.*nii.gz is truncated, damaged", cut(betas))
    yield fault(table.format(30), edited(trials, first, f"ses-02\t1\t3\tx\n{first}"))
    said = "trials.tsv names 'strange_.*expected an image_name of task-images_metadata.csv"
    yield fault(said, edited(trials, "unique_", "strange_"))
    yield fault("V9.nii.gz is missing. The masks there", rois="V9")
    yield fault("'MT' is several masks. Choose localizer:MT", rois="MT")
    yield fault("V1v.nii.gz has no voxel; exp", saved(mask, 0 * ones), rois="V1v")
    yield fault(shape, saved(mask, ones[:3]), rois="V1v")
    yield fault(grid, saved(mask, ones, moved), rois="V1v")
    yield fault("statmap.nii.gz holds 120 .*; expected 0 to 100 per cent", saved(ceiling, high))
    yield fault("'nsd' is unknown; .* stand for all", split="nsd")
    yield fault("tau.json is .* no split file", lambda r: (r / tau).write_text("{}"))
    yield fault(theirs, edited(tau, own, other))
    yield fault(both, split_into(tau, train_ids=[own], test_ids=[own]))
    yield fault("0 test stimuli; load more sessions", split_into(tau, test_ids=[]))
    yield fault("metadata.csv is missing. minddiff", gone(METADATA))


@pytest.mark.parametrize(("change", "given", "said"), list(faults()))
def test_what_does_not_fit_is_named_in_a_sentence(copy, change, given, said):
    change(copy)
    refuses(said, load, copy, **given)


def test_pictures_that_are_absent_or_damaged(copy):
    subject, path = load(copy), copy / PICTURES
    with h5py.File(path, "r+") as file:
        file["images"][0] = np.frombuffer(encoded(0, False)[0][:-300], np.uint8)
    refuses("stimuli.h5 is .*damaged or no file of JPEG", subject.stimuli.pictures, [0])
    path.unlink()
    refuses(r"stimuli.h5 is missing. .*request-access.*/request", subject.stimuli.pictures, [3])
    text = (copy / CAPTIONS).read_text()
    (copy / CAPTIONS).write_text(text.replace("human", "ai"))
    refuses("has no human caption of .*; expected one at least", subject.stimuli.captions, [3])


# ------------------------------------------------------------------------- the real split files


@pytest.mark.skipif(not REAL.is_dir(), reason="the real split files are not there")
@pytest.mark.parametrize(("name", "sizes"), [("tau", (4666, 1167)), ("cluster_k5_0", (5218, 615))])
def test_a_real_split_file(tmp_path, name, sizes):
    (tmp_path / "splits").symlink_to(REAL)
    tree = LaionTree(tmp_path, "sub-01")
    pool = [json.loads((REAL / p).read_text()) for p in ("sub-01/tau.json", "shared/ood.json")]
    known = {one for file in pool for part in file["variants"][0].values() if part for one in part}
    assert len(known) == 6204
    rows = {one: "1" if one.startswith("unique") else "" for one in sorted(known)}
    whole = read_split(tree, name, rows, np.arange(6204))
    assert (len(whole.train), len(whole.test)) == sizes
    names = sorted(known)
    assert not [one for one in (*whole.train, *whole.test) if "OOD" in names[one]]
    seen = np.random.default_rng(0).choice(6204, 770, replace=False)  # about one session
    few = read_split(tree, name, rows, seen)
    np.testing.assert_array_equal(few.test, np.intersect1d(whole.test, seen))


# ------------------------------------------------------------------------------ the real shape

REAL_SHAPE, N_TRIALS = (143, 143, 143), 1050

PEAK = """
import sys, time
from studies.betas import peak_memory
from minddiff_utils.datasets import load_subject

started = time.perf_counter()
subject = load_subject("laion", sys.argv[1], "sub-01", cache=sys.argv[2])
shape = subject.responses.shape
print(*shape, peak_memory() / 2**20, time.perf_counter() - started)
"""


@pytest.mark.slow
def test_memory_at_the_real_shape(tmp_path):
    """`pytest -m slow -k real_shape -s tests/test_laion.py`: minutes, and some GB of disk.

    Random numbers where a brain would be, 250,000 voxels, and zeros around it.
    """
    root = write_tree(tmp_path / "tree", n_sessions=1, people=("sub-01",))
    rng, centre = np.random.default_rng(0), np.indices(REAL_SHAPE) - 71
    distance = np.sqrt((centre**2).sum(axis=0))
    brain, general = distance < 39, (distance > 34) & (distance < 36.5)
    folder = root / ROIS.format("sub-01")
    save(folder / "laion/laion-general.nii.gz", general.astype(np.uint8))
    save(root / CEILING.format("sub-01"), rng.uniform(0, 50, REAL_SHAPE).astype(np.float32))
    rows = [name for name, owner in picture_names(10, 6) if owner != "sub-03"]
    lines = [f"ses-01\t1\t{k}\t{rows[k % len(rows)]}" for k in range(N_TRIALS)]
    text = "\n".join(["session\trun\tbeta_index\tlabel", *lines])
    (root / TRIALS.format("sub-01", 1)).write_text(text)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((*REAL_SHAPE, N_TRIALS))
    header.set_sform(AFFINE, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = root / BETAS.format("sub-01", 1)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(N_TRIALS):
            volume = np.zeros(REAL_SHAPE, np.float32)
            volume[brain] = rng.standard_normal(brain.sum(), np.float32)
            file.write(volume.tobytes("F"))
    arguments = [sys.executable, "-c", PEAK, str(root), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    n_trials, n_voxels, peak, seconds = map(float, done.stdout.split())
    size = path.stat().st_size / 1e9
    found = f"{n_voxels:,.0f} of {brain.sum():,} voxels, {size:.2f} GB"
    print(f"\n{found}: {peak:,.0f} MiB, {seconds:.0f} s")
    assert (n_trials, n_voxels) == (N_TRIALS, general.sum()) and peak < 1536


# ------------------------------------------------------------------- fetching from a local bucket


def listing(keys, more=""):
    """A page of ListObjectsV2, as S3 writes it."""
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    return f"<?xml version='1.0'?><ListBucketResult {space}>{entries}{token}</ListBucketResult>"


def asking(prefix, **more):
    return "/?" + urlencode({"list-type": "2", "prefix": prefix, **more})


@pytest.fixture
def web(tree, monkeypatch):
    """The bucket and the package's splits on one server; masks are listed on two pages."""
    files = {}
    for path in tree.rglob("*"):
        name = path.relative_to(tree).as_posix()
        if path.is_file() and name != PICTURES:
            at = f"/{fetch.LAION_COMMIT}/laion_fmri/splits/data/" if "splits" in name else "/"
            files[at + name.removeprefix("splits/")] = path.read_bytes()
    masks = sorted(name[1:] for name in files if "/rois/" in name and "sub-01" in name)
    prefix, token = ROIS.format("sub-01"), "a+b/c="
    files[asking(prefix)] = listing([*masks[:2], prefix + "README"], token).encode()
    files[asking(prefix, **{"continuation-token": token})] = listing(masks[2:]).encode()
    ceiling = CEILING.format("sub-01")
    files[asking(ceiling.removesuffix("4rep_statmap.nii.gz"))] = listing([ceiling]).encode()
    with serve(files) as server:
        monkeypatch.setattr(fetch, "LAION_BUCKET", server.url)
        monkeypatch.setattr(fetch, "LAION_PACKAGE", server.url)
        yield server


@pytest.fixture
def call(capsys, monkeypatch):
    """A function that runs `minddiff`; returns its exit code and what it says."""

    def run(*words):
        code, shown = run_cli(capsys, monkeypatch, *words)
        return code, shown.out + shown.err

    return run


def test_fetch_then_check_then_load(web, tree, tmp_path, call):
    to, given = tmp_path / "to", ("--subject", "sub-01", "--sessions", "1-2")
    code, said = call("fetch", "laion", to, *given, "--dry-run")
    assert code == 0 and "25 files" in said and "to download" in said and not to.exists()
    code, said = call("fetch", "laion", to, *given)
    assert code == 0 and "stimuli.h5 does not come this way. The pictures need a short form" in said
    own = {f.relative_to(tree).as_posix() for f in recording_files(tree, "sub-01")} - {PICTURES}
    assert files_in(to) == {name for name in own if "ses-03" not in name}
    assert all((to / name).read_bytes() == (tree / name).read_bytes() for name in files_in(to))
    assert "0 files" in call("fetch", "laion", to, *given)[1]

    code, said = call("check", "laion", to)
    assert code == 1 and "Not ready: 20 of 21 files" in said and "laion-fmri.hebartlab.com" in said
    shutil.copy(tree / PICTURES, to / PICTURES)
    code, said = call("check", "laion", to, *given, "--rois", "V1v,FFA-1")
    assert code == 0 and "Ready: 22 of 22 files" in said
    code, said = call("check", "laion", to, "--sessions", "3")
    assert code == 1 and "missing" in said and "minddiff fetch laion" in said
    np.testing.assert_array_equal(
        load(to, sessions="1-2").responses, load(tree, sessions="1-2").responses
    )
    with h5py.File(to / PICTURES, "r+") as file:
        file["images"][load(to).stimuli.ids[0]] = np.zeros(0, np.uint8)
    (to / "splits/sub-01/ood.json").write_text("{}")
    save(to / CEILING.format("sub-01"), np.full(SHAPE, 120, np.float32))
    code, said = call("check", "laion", to)
    assert code == 1 and said.count("damaged   ") == 3 and "no split file" in said


def test_what_the_bucket_does_not_give_is_said_before_anything_comes(web, tmp_path):
    to, masks, trials = tmp_path / "to", asking(ROIS.format("sub-01")), TRIALS.format("sub-01", 2)
    web.codes["/" + trials] = 403
    said = "trials.tsv cannot be fetched .403 .*address right"
    refuses(said, fetch.fetch_laion, to, ["sub-01"], 3)
    web.files[masks] = listing([]).encode()
    refuses("lists no masks of sub-01", fetch.fetch_laion, to, ["sub-01"], 3)
    web.codes[masks] = 503
    refuses("does not list .*503", fetch.fetch_laion, to, ["sub-01"], 3)
    assert not to.exists()
