"""What one can choose of NSD: regions of any atlas, sessions and protocols."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import scipy.io
from builders import ROOT, refuses

from minddiff_utils.book.plan import load_plan
from minddiff_utils.datasets import load_subject, mean_repetitions, noise_ceiling
from minddiff_utils.datasets.nsd import NsdTree
from minddiff_utils.datasets.nsd.regions import read_regions
from studies.betas import make_tree

LABELS = {0: "Unknown", 1: "early", 2: "midventral", 5: "ventral", 7: "parietal"}


@pytest.fixture(scope="module")
def root(three_sessions, tmp_path_factory):
    """A phantom with a second atlas, of which label 7 has no voxel."""
    root = shutil.copytree(three_sessions, tmp_path_factory.mktemp("choices") / "tree")
    tree = NsdTree(root, "subj01")
    image = nib.load(tree.roi("nsdgeneral"))
    shape = image.shape
    volume = np.random.default_rng(0).choice([-1, 0, 1, 2, 5], shape).astype(np.int16)
    for name in ("streams", "lh.streams"):
        nib.save(nib.Nifti1Image(volume, image.affine), tree.roi(name))
    table = "\n".join(f"{number} {name}" for number, name in LABELS.items())
    tree.labels("streams").write_text(table)
    return root


@pytest.fixture
def tree(root):
    return NsdTree(root, "subj01")


WHOLE = {"early": [1], "midventral": [2], "ventral": [5]}
CHOICES = {"streams": WHOLE, "lh.streams": WHOLE}
CHOICES["streams:ventral, early"] = {"ventral": [5], "early": [1]}


@pytest.mark.parametrize(("rois", "expected"), CHOICES.items())
def test_any_atlas(tree, rois, expected):
    regions = read_regions(tree, rois)
    volume = np.asarray(nib.load(tree.roi("streams")).dataobj)
    assert list(regions.roi) == list(expected)
    wanted = np.isin(volume, sum(expected.values(), []))
    np.testing.assert_array_equal(regions.ijk, np.argwhere(wanted))
    for name, labels in expected.items():
        label = volume[tuple(regions.ijk[regions.roi[name]].T)]
        assert set(label) == set(labels) and len(label) == np.isin(volume, labels).sum()


def test_several_atlases_together(tree):
    both = read_regions(tree, "V1+streams:early+lh.streams:early")
    assert list(both.roi) == ["V1", "early", "lh.streams:early"]
    np.testing.assert_array_equal(both.roi["early"], both.roi["lh.streams:early"])
    places = [tuple(place) for place in both.ijk]
    assert len(set(places)) == len(places)
    for rois, name in (("V1", "V1"), ("streams:early", "early")):
        alone = {tuple(place) for place in read_regions(tree, rois).ijk}
        assert alone == {p for p, here in zip(places, both.roi[name], strict=True) if here}


UNKNOWN = {
    "stream": r"'stream' is unknown; .* \(Kastner2015, lh.streams, nsdgeneral, streams\)",
    "stream:early": "'stream' is unknown",
    "streams:FFA": "has no label FFA; it has early, midventral, ventral, parietal",
    "streams:parietal": r"ROI parietal is empty.* label \[7\]. Leave it out",
    "": "'' is unknown",
}


@pytest.mark.parametrize(("rois", "message"), UNKNOWN.items())
def test_unknown_or_empty_regions(tree, rois, message):
    refuses(message, read_regions, tree, rois)


# --- sessions and protocols -----------------------------------------------------------------------


def full_design():
    """An order of 30,000 trials in which 18 shared and 141 other pictures come after session 37."""
    rng = np.random.default_rng(0)
    late = np.r_[np.arange(983, 1001), np.arange(9860, 10001)]
    others = np.setdiff1d(np.arange(1, 10001), late)
    last = rng.permutation(np.r_[np.repeat(late, 3), others[: 3 * 750 - 3 * len(late)]])
    first = np.r_[others, others, others[3 * 750 - 3 * len(late) :]]
    return np.r_[rng.permutation(first), last]


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    tree = NsdTree(tmp_path_factory.mktemp("forty") / "tree", "subj01")
    make_tree(tree, (3, 2, 2), 750, 5, 40)
    rng = np.random.default_rng(1)
    pictures = rng.permutation(73000)[None, :10000] + 1
    design = {"masterordering": full_design()[None], "subjectim": pictures}
    scipy.io.savemat(tree.design, {**design, "sharedix": pictures[:, :1000]})
    return tree


def load(tree, **more):
    return load_subject("nsd", tree.root, tree.subject, rois="nsdgeneral", **more)


PROTOCOLS = [(982, 37, 8859, 982), (1000, 40, 9000, 1000)]


@pytest.mark.parametrize(("protocol", "n_sessions", "train", "test"), PROTOCOLS)
def test_protocols_have_the_published_numbers(forty, protocol, n_sessions, train, test):
    subject = load(forty, protocol=protocol)
    (split,) = subject.splits
    assert set(subject.session) == set(range(1, n_sessions + 1))
    assert (len(split.train), len(split.test)) == (train, test)
    pictures = scipy.io.loadmat(forty.design)["subjectim"][0] - 1
    assert set(split.test) <= set(pictures[:1000]) and set(split.train) <= set(pictures[1000:])
    assert load(forty).splits[0].test.size == 1000


def test_a_first_try_with_three_sessions(forty, tmp_path):
    """As the page "Run it on NSD" says: three sessions fetched, and `protocol=null`."""
    few = NsdTree(shutil.copytree(forty.root, tmp_path / "few"), "subj01")
    for number in range(4, 41):
        few.session(number).unlink()
    refuses("its subject has sessions 1, 2, 3, .* leave out `protocol`", load, few, protocol=1000)
    refuses("protocol=5 .* give protocol 982", load, few, protocol=5)
    refuses("protocol=982 with sessions=3: give", load, few, protocol=982, sessions=3)
    assert 'add `SET="protocol=null"`' in (ROOT / "book/run_nsd.md").read_text("utf-8")
    params = ROOT / "notebooks/params/nsd.yaml"
    given = load_plan(params, ROOT, {"protocol": None}).values
    choice = {name: given[name] for name in ("sessions", "protocol")}
    subject = load(few, **choice)
    assert set(subject.session) == {1, 2, 3} and subject.splits[0].test.size > 100


def test_sessions_by_number_and_by_name(forty):
    for sessions, expected in ((3, [1, 2, 3]), ("2, 5-6", [2, 5, 6]), ([9, 4], [4, 9])):
        subject = load(forty, sessions=sessions)
        assert sorted(set(subject.session)) == expected
        order = scipy.io.loadmat(forty.design)["masterordering"][0]
        shown = np.concatenate([order[(n - 1) * 750 : n * 750] for n in expected])
        pictures = scipy.io.loadmat(forty.design)["subjectim"][0]
        np.testing.assert_array_equal(subject.stimulus_id, pictures[shown - 1] - 1)
    refuses(r"sessions=1\.5: expected how many", load, forty, sessions=1.5)
    said, other = "are for nsd and laion, not dataset='miyawaki'", ("miyawaki", forty.root, "S1")
    refuses(said, load_subject, *other, protocol=982)


def test_noise_ceiling_of_unequal_repetitions():
    """NSD's manual: ncsnr² / (ncsnr² + (A/3 + B/2 + C/1) / (A + B + C))."""
    a, b, c = 6234, 8355 - 6234, 9411 - 8355  # subjects 3 and 6
    count = np.repeat([3, 2, 1], [a, b, c])
    expected = 100 * 0.6**2 / (0.6**2 + (a / 3 + b / 2 + c / 1) / (a + b + c))
    assert noise_ceiling(np.array([0.6]), mean_repetitions(count)) == pytest.approx(expected)
    assert mean_repetitions(np.full(7, 3)) == pytest.approx(3)
