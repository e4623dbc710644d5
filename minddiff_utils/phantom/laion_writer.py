"""Writes the phantom's experiment as files in the layout of LAION-fMRI.

Its split files test how far decoding generalises: `random` draws test pictures at random, `tau`
from those that lie far from all others, `cluster_k5` leaves out whole settings, and `ood` tests
with pictures from outside of the phantom's world.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy.spatial import KDTree
from sklearn.neighbors import NearestNeighbors

from minddiff_utils.datasets import mean_repetitions, noise_ceiling
from minddiff_utils.datasets.laion import GENERAL, N_SESSIONS, SUBJECTS, LaionTree
from minddiff_utils.io import atomic_path, open_to_write, write_text
from minddiff_utils.phantom import nsd_writer, world
from minddiff_utils.phantom.brain import Brain
from minddiff_utils.phantom.nsd_writer import Experiment, write_map

CUT_OUT = ("cropped", "shape")  # kinds on a transparent ground
# The settings that each of the splits `cluster_k5` leaves out.
CLUSTERS = (("night",), ("sea",), ("snow",), ("sunset", "desert"), ("day", "pattern"))
AREAS = "V1v V1d V2v V2d V3v V3d V3A V3B hV4 LO1 LO2 TO1 TO2 VO1 VO2 IPS0".split()
# Sectors of `laion-general`; the areas that they grow from.
SECTORS = {
    "laion-EVC": "V1v V1d V2v V2d V3v V3d", "laion-lateral": "LO1 LO2 TO1 TO2",
    "laion-dorsal": "V3A V3B IPS0 IPS1 IPS2 IPS3 IPS4 IPS5",
    "laion-ventral": "hV4 VO1 VO2 PHC1 PHC2",
}  # fmt: skip
COLUMNS = ["image_name", "dataset", "participant", "unique_or_shared", "n_reps"]
CAPTION_COLUMNS = ["image_name", "caption_idx", "source", "caption"]


def write_tree(
    path: str | Path,
    subjects: Sequence[str] = SUBJECTS[:2],
    n_train: int = 600,
    n_test: int = 48,
    repetitions: int = 4,
    seed: int = 0,
) -> Path:
    """Write the phantom's experiment in LAION-fMRI's layout, unless it is there.

    What is said of `minddiff_utils.phantom.nsd_writer.write_tree` holds here, too.

    Parameters
    ----------
    path : str or Path
        Folder to write.
    subjects : sequence of str
        Some of "sub-01", "sub-03", "sub-05", "sub-06" and "sub-07".
    n_train : int
        Pictures that one subject alone sees.
    n_test : int
        Pictures of the world that all subjects see, and as many from outside of it; also the test
        pictures of `tau` and of each `random`.
    repetitions : int
        How often each is shown at most; LAION-fMRI's file names speak of 4.
    seed : int

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        If a parameter is outside its range, or the folder holds something else.
    """
    path = Path(path)
    size = {"n_train": n_train, "n_test": n_test, "repetitions": repetitions, "seed": seed}

    def write(subjects: list[str]) -> None:
        experiment = plan_experiment(1 + SUBJECTS.index(subjects[-1]), **size)
        table = picture_table(experiment, subjects)
        _write_pictures(LaionTree(path, subjects[0]), table)
        for subject in subjects:
            tree = LaionTree(path, subject)
            _write_subject(tree, experiment, table, seed)
            _write_splits(tree, table[table["participant"].isin(("", subject))], n_test, seed)

    return nsd_writer.write_once(path, {**size, "layout": "laion"}, SUBJECTS, subjects, write)


def plan_experiment(
    n_subjects: int, n_train: int, n_test: int, repetitions: int, seed: int
) -> Experiment:
    """Draw the order of the trials and each subject's pictures, as for NSD.

    Of the shared pictures the second half comes from outside of the world, without noise, which
    LAION-fMRI does not have. Any other may test, so all contrast patterns differ from those that
    the phantom's models were trained on. Trials fill no more sessions than LAION-fMRI has.
    """
    plan = nsd_writer.plan_experiment(n_subjects, n_train, 2 * n_test, repetitions, seed)
    pictures = nsd_writer.choose_pictures(np.arange(len(plan.pictures)), np.empty(0, np.int64))
    outside = range(world.FIRST_OUTSIDE_ID, world.FIRST_OUTSIDE_ID + 2 * n_test)
    outside = [i for i in outside if world.scene(i).outside != "noise"][:n_test]
    pictures[plan.subjectim[0, n_test : 2 * n_test] - 1] = outside
    longest = max(plan.session_trials, -(-len(plan.masterordering) // N_SESSIONS))
    return plan._replace(pictures=pictures, session_trials=longest)


def picture_table(experiment: Experiment, subjects: Sequence[str]) -> pd.DataFrame:
    """Return LAION-fMRI's table of pictures, after the id in the world of each.

    Returns
    -------
    DataFrame
        In the order of the stimuli's ids; indexed by their numbers in `experiment`.
    """
    n_reps, shared = np.bincount(experiment.masterordering).max(), experiment.n_test
    seen = {"": experiment.subjectim[0, :shared]}
    seen |= {one: experiment.subjectim[SUBJECTS.index(one), shared:] for one in subjects}
    rows = {}
    for owner, stimulus in ((who, i - 1) for who, numbers in seen.items() for i in numbers):
        picture, use = int(experiment.pictures[stimulus]), "unique" if owner else "shared"
        kind, name = world.scene(picture).outside, f"{use}_LAION_phantom_{picture}.jpg"
        if not owner:
            name = f"shared_4rep_{f'OOD_{kind}' if kind else 'LAION'}_phantom_{picture}"
            name += ".png" if kind in CUT_OUT else ".jpg"
        rows[stimulus] = (picture, name, "OOD" if kind else "LAION", owner, use, n_reps)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["world_id", *COLUMNS])


def _write_pictures(tree: LaionTree, table: pd.DataFrame) -> None:
    """Write the table of pictures, the pictures as JPEG or PNG bytes, and their captions."""
    write_text(tree.metadata, table[COLUMNS].to_csv(index=False))
    captions: list[tuple[str, int, str, str]] = []
    with atomic_path(tree.pictures) as tmp, open_to_write(tmp) as file:
        images = file.create_dataset("images", len(table), h5py.vlen_dtype(np.uint8))
        for row, (picture, name, _, owner, *_) in enumerate(table.itertuples(index=False)):
            images[row] = np.frombuffer(_encoded(picture, name.endswith("png")), np.uint8)
            texts = world.captions(picture)
            # Of AI there are captions of shared pictures of the world, and of people three or five.
            if "shared_4rep_LAION" in name:
                captions.append((name, 0, "ai", f"A simple drawing: {texts[0]}."))
            some = enumerate(texts[:3] if owner else texts, start=1)
            captions += [(name, rank, "human", text) for rank, text in some]
    write_text(tree.captions, pd.DataFrame(captions, columns=CAPTION_COLUMNS).to_csv(index=False))


def _encoded(picture: int, transparent: bool) -> bytes:
    """Return a picture as JPEG, or as PNG whose mid-grey is transparent."""
    drawn, buffer = world.picture(picture), io.BytesIO()
    if transparent:
        shown = np.uint8(255) * (drawn != 128).any(axis=2, keepdims=True)
        Image.fromarray(np.concatenate([drawn & shown, shown], axis=2)).save(buffer, "PNG")
    else:
        Image.fromarray(drawn).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _write_subject(tree: LaionTree, experiment: Experiment, table: pd.DataFrame, seed: int) -> None:
    """Write regions, betas, tables of trials and noise ceilings of one subject."""
    index = SUBJECTS.index(tree.subject)
    simulated = Brain(nsd_writer.SUBJECTS[index], seed)
    for name, mask in _masks(simulated).items():
        write_map(tree.rois / f"{name}.nii.gz", simulated.ijk, mask.astype(np.uint8))
    trials = experiment.trials(index)

    def write(number: int, betas: np.ndarray) -> None:
        responses = betas.T / np.float32(nsd_writer.SCALE)
        write_map(tree.betas(number), simulated.ijk, responses, level=1)
        place = np.arange(len(betas))
        run = 1 + 12 * place // experiment.session_trials
        shown = {"session": f"ses-{number:02d}", "run": run, "beta_index": place}
        shown["label"] = table["image_name"][trials[experiment.session == number - 1]].tolist()
        write_text(tree.trials(number), pd.DataFrame(shown).to_csv(sep="\t", index=False))

    ncsnr = nsd_writer.simulate_sessions(simulated, experiment, 5, tree.subject, write)
    n_shown = np.unique(trials, return_counts=True)[1]
    for name, n in {"4rep": 4.0, "Allrep": mean_repetitions(n_shown)}.items():
        file = tree.ceiling.with_name(f"{tree.ceilings}{name}_statmap.nii.gz")
        write_map(file, simulated.ijk, noise_ceiling(ncsnr, n).astype(np.float32))


def _masks(simulated: Brain) -> dict[str, np.ndarray]:
    """Return the voxels of each region; bool (n_voxels,).

    Cortex outside the areas belongs to the sector of the nearest one.
    """
    sector_of = {area: name for name, areas in SECTORS.items() for area in areas.split()}
    inside = np.flatnonzero(simulated.area != "")
    nearest = inside[KDTree(simulated.ijk[inside]).query(simulated.ijk)[1]]
    sector = np.array([sector_of[area] for area in simulated.area[nearest].tolist()])
    masks = {name: simulated.area == name for name in AREAS}
    masks |= {name: sector == name for name in SECTORS} | {GENERAL: np.ones(len(sector), bool)}
    return masks | {"EVC": np.isin(simulated.area, SECTORS["laion-EVC"].split())}


# ------------------------------------------------------------------------------------- splits


def _write_splits(tree: LaionTree, table: pd.DataFrame, n_test: int, seed: int) -> None:
    """Write one subject's split files; `table` is of all pictures that the subject saw."""
    names, outside = table["image_name"].to_numpy(), (table["dataset"] == "OOD").to_numpy()
    pool, pictures = names[~outside], table["world_id"][~outside].tolist()
    rng = np.random.default_rng([seed, SUBJECTS.index(tree.subject), 6])
    tests = {name: pool[test] for name, test in choose_tests(pictures, n_test, rng).items()}
    for name, test in {**tests, "ood": names[outside]}.items():
        parts = {"train_ids": np.setdiff1d(pool, test).tolist(), "test_ids": sorted(test)}
        facts = {"name": name, "pool": f"{tree.subject} full pool", "splitter": "phantom"}
        sizes = {"n_train": len(parts["train_ids"]), "n_test": len(test)}
        whole = {**facts, **sizes, "variants": [{"variant_id": 0, **parts}]}
        write_text(tree.split(name), json.dumps(whole))


def choose_tests(
    pictures: Sequence[int], n_test: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Choose which pictures of a pool test in each split; all others of it train.

    Parameters
    ----------
    pictures : sequence of int
        Ids in the world.
    n_test : int
        Test pictures of `tau` and of each `random`.
    rng : numpy.random.Generator

    Returns
    -------
    dict of str to int64 array
        Places in `pictures`. Those of `tau` are drawn from the half of each setting that lies
        farthest from the nearest neighbour, by the distance of pictures of 16 x 16 pixels, so
        that the settings are as frequent as in the pool.
    """
    setting = np.array([world.scene(i).setting for i in pictures])
    coarse = np.stack([world.picture(i) for i in pictures]).reshape(-1, 16, 4, 16, 4, 3)
    coarse = coarse.mean(axis=(2, 4)).reshape(len(pictures), -1)
    distance = NearestNeighbors(n_neighbors=1).fit(coarse).kneighbors()[0][:, 0]
    usual = pd.Series(distance).groupby(setting).transform("median").to_numpy()
    far = np.flatnonzero(distance >= usual)
    tests = {"tau": rng.choice(far, min(n_test, len(far)), replace=False)}
    for k, left_out in enumerate(CLUSTERS):
        tests[f"random_{k}"] = rng.choice(len(pictures), n_test, replace=False)
        tests[f"cluster_k5_{k}"] = np.flatnonzero(np.isin(setting, left_out))
    return tests
