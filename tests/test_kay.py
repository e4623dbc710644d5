"""The reader of `kay_images.npz`, on a small file with the same keys."""

import json

import numpy as np
import pytest
from builders import refuses

from minddiff_utils.datasets import load_subject, prepare_fold

NAMES = ["Other", "V1", "V2", "V3", "V3A", "V3B", "V4", "LatOcc"]
N_TRAIN, N_TEST, N_VOXELS = 30, 6, 40


def make(folder, **changes):
    """Write a small file; `changes` replace or, if None, remove keys."""
    rng = np.random.default_rng(0)
    content = {
        "stimuli": rng.random((N_TRAIN, 16, 16), np.float32),
        "stimuli_test": rng.random((N_TEST, 16, 16), np.float32),
        "responses": rng.standard_normal((N_TRAIN, N_VOXELS)),
        "responses_test": rng.standard_normal((N_TEST, N_VOXELS)),
        "roi": np.arange(N_VOXELS) % 7 + 1,
        "roi_names": np.array(NAMES),
    } | changes
    path = folder / "kay_images.npz"
    np.savez_compressed(path, **{k: v for k, v in content.items() if v is not None})
    return path, content


def load(path, **more):
    return load_subject("kay", path, "S1", **more)


def test_trial_for_trial_and_voxel_for_voxel(tmp_path):
    path, content = make(tmp_path)
    subject = load(path)
    rows = np.concatenate([content["responses"], content["responses_test"]])
    np.testing.assert_allclose(subject.responses, rows, rtol=1e-6)
    pictures = np.concatenate([content["stimuli"], content["stimuli_test"]])
    for i in (0, 29, 30, 35):
        (picture,) = subject.stimuli.pictures([i])
        assert picture.dtype == np.uint8 and picture.shape == (16, 16, 3)
        for channel in range(3):
            np.testing.assert_array_equal(picture[..., channel], np.rint(255 * pictures[i]))
    (split,) = subject.splits
    assert split.train.tolist() == list(range(30)) and split.test.tolist() == list(range(30, 36))
    np.testing.assert_allclose(prepare_fold(subject, split).train_x.std(axis=0), 1, atol=1e-5)
    assert subject.stimuli.captions([0, 35]) == [("",), ("",)]


def test_regions_by_name(tmp_path):
    path, content = make(tmp_path)
    every = load(path)
    assert list(every.roi) == NAMES[1:]
    for number, name in enumerate(NAMES[1:], start=1):
        np.testing.assert_array_equal(every.roi[name], content["roi"] == number)
    some = load(path, rois="V1,LatOcc")
    wanted = np.isin(content["roi"], (1, 7))
    np.testing.assert_allclose(some.responses[0], content["responses"][0, wanted], rtol=1e-6)
    refuses("'hV4' is unknown; give all or some of V1,V2", load, path, rois="hV4")


def test_voxels_of_no_region_or_without_data_are_left_out(tmp_path):
    path, content = make(tmp_path, roi=np.arange(N_VOXELS) % 8)  # 0: "Other"
    content["responses"][:, 3] = 0.5
    content["responses_test"][2, 4] = np.nan
    make(tmp_path, **content)
    subject = load(path)
    assert subject.responses.shape[1] == 33 and subject.n_dropped == 2
    assert "Other" not in subject.roi
    content["responses"][:, content["roi"] == 2] = 0
    make(tmp_path, **content)
    refuses("kay_images.npz: every voxel of region V2", load, path)


def test_captions_from_a_file_beside(tmp_path):
    path, _ = make(tmp_path)
    texts = {str(i): [f"photograph {i}", "in grey"] for i in range(36)}
    (tmp_path / "kay_captions.json").write_text(json.dumps(texts))
    assert load(path).stimuli.captions([33]) == [("photograph 33", "in grey")]
    for content, said in ((texts | {"7": []}, "no caption for picture 7"), ([1], "no file of")):
        (tmp_path / "kay_captions.json").write_text(json.dumps(content))
        refuses(f"kay_captions.json .*{said}", load, path)


def test_missing_or_truncated_file_is_named(tmp_path):
    refuses(r"kay_images.npz is missing. Fetch it \(249 MB\)", load, tmp_path)
    path, _ = make(tmp_path)
    content = path.read_bytes()
    for share in (0.0, 0.4, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        refuses("kay_images.npz is truncated, damaged", load, path)


OTHER = [
    ({"roi": None}, "no archive of these arrays .*roi is not a file in the archive"),
    ({"roi": np.ones(39, int)}, r"`roi` has shape \(39,\); expected \(40,\)"),
    ({"roi": np.full(40, 8)}, "roi holds 8 to 8, roi_names 8 names"),
    ({"stimuli_test": np.zeros((6, 8, 8))}, r"`stimuli_test` has shape \(6, 8, 8\); expected"),
    ({"stimuli": np.zeros((30, 16))}, "`stimuli` has shape"),
]


@pytest.mark.parametrize(("changes", "message"), OTHER)
def test_another_file(tmp_path, changes, message):
    path, _ = make(tmp_path, **changes)
    refuses(message, load, path)
