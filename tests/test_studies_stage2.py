"""Both solvers side by side: passes are counted as they happen, a stopped run goes on."""

import dataclasses

import h5py
import numpy as np
import pytest
from test_reconstruction import decoded

from minddiff_utils.evaluation.metrics import pcc
from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.inputs import pictures_of
from minddiff_utils.reconstruction.results import read_pictures, read_trace
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies import stage2
from studies.published import follow_course
from studies.stage2 import compare_solvers, count_unet, read_stored, run_solvers
from studies.stored import store_pictures

FAST = Settings(
    n_steps=5, strength=0.6, structure_target="values", z_evidence_weight=0.0, gradient_steps=2
)
PAPER = dataclasses.replace(FAST, solver="algorithm_1", iterations=2)
SOLVERS = {"guided": FAST, "algorithm_1": PAPER}


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu")


@pytest.fixture(scope="module")
def truth():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def embed(generator):
    return {"clip_judge": generator.guide.embed, "clip_guide": generator.guide.embed}


@pytest.mark.parametrize(
    ("settings", "forward", "backward"),
    [
        (FAST, 3 * (2 + 2), 3 * 2),  # gradient steps under the text, both conditions of the step
        (dataclasses.replace(FAST, gradient_through="both"), 3 * 2 * (2 + 1), 3 * 2 * 2),
        (PAPER, 3 * 2 * 3, 3 * 2 * 2),  # steps, both conditions, iterations and the last picture
        (dataclasses.replace(PAPER, recompute=True), 3 * 2 * (3 + 2), 3 * 2 * 2),
    ],
    ids=["guided", "both halves", "algorithm_1", "recomputed"],
)
def test_passes_are_counted(generator, tmp_path, settings, forward, backward):
    with count_unet(generator.unet) as count:
        reconstruct(generator, decoded(generator, 2), settings, tmp_path / "a.h5")
    assert (count.forward, count.backward) == (2 * forward, 2 * backward)
    assert count.equivalents == 2 * (forward + 2 * backward)


def test_table_and_going_on(generator, truth, embed, tmp_path):
    arrays = decoded(generator, 3)
    *_, (made, spent) = run_solvers(generator, arrays, SOLVERS, tmp_path, 2)
    table = compare_solvers(generator, arrays, truth, embed, SOLVERS, made, spent)
    assert list(table.index) == ["guided", "algorithm_1"]
    assert list(table.equivalents) == [3 * (4 + 4), 3 * 2 * (3 + 4)]
    assert (table.loc["guided", ["ssim_gain", "ssim_low", "ssim_high"]] == 0).all()
    gain = table.ssim["guided"] - table.ssim["algorithm_1"]
    assert table.loc["algorithm_1", "ssim_gain"] == pytest.approx(gain)
    path = reconstruct(generator, arrays, PAPER, tmp_path / "whole.h5")
    assert pcc(truth, read_pictures(path)).mean() == pytest.approx(table.pcc["algorithm_1"], 1e-3)
    with count_unet(generator.unet) as count:
        *_, (again, costs) = run_solvers(generator, arrays, SOLVERS, tmp_path, 2)
    assert count.forward == 0  # all of it was there
    same = compare_solvers(generator, arrays, truth, embed, SOLVERS, again, costs)
    assert same.seconds.equals(table.seconds) and same.ssim.equals(table.ssim)


@pytest.fixture(scope="module")
def earlier(generator, truth, embed, tmp_path_factory):
    """Folder in which an earlier sitting, on another machine, has left pictures 2 and 0."""
    arrays, out = decoded(generator, 3), tmp_path_factory.mktemp("out")
    part = pictures_of(arrays, [2, 0])
    *_, (made, spent) = run_solvers(generator, part, SOLVERS, tmp_path_factory.mktemp("subj01"))
    table = compare_solvers(generator, part, truth[[2, 0]], embed, SOLVERS, made, spent)
    pictures = np.stack(list(made["algorithm_1"].values()))
    store_pictures(out / "algorithm_1_subj01.h5", part, pictures, "`… --iterations 2 --out out`")
    table.rename_axis("solver").to_csv(out / "solvers_subj01.csv")
    return out, pictures, table


def test_stored_pictures_are_not_made_again(generator, earlier, tmp_path):
    out, pictures, before = earlier
    arrays, work = decoded(generator, 3), tmp_path / "here" / "subj01"
    with count_unet(generator.unet) as count:
        courses = list(run_solvers(generator, arrays, SOLVERS, work, 2, out))
    # Three pictures guided, one by Algorithm 1.
    assert count.equivalents == 3 * 3 * (4 + 4) + 3 * 2 * (3 + 4)
    made, spent = courses[-1]
    np.testing.assert_array_equal(made["algorithm_1"][2], pictures[0])
    np.testing.assert_array_equal(made["algorithm_1"][0], pictures[1])
    path = reconstruct(generator, arrays, PAPER, tmp_path / "whole.h5")
    assert np.abs(made["algorithm_1"][1] - read_pictures(path)[1].astype(int)).max() <= 1
    assert spent["algorithm_1"][0].seconds == pytest.approx(before.seconds["algorithm_1"])


@pytest.mark.parametrize("change", ["features", "iterations", "none"])
def test_pictures_of_other_features_or_iterations_are_not_taken(generator, earlier, change):
    arrays = decoded(generator, 3)
    if change == "features":
        arrays["c"] = 1.1 * arrays["c"]
    found, _ = read_stored(earlier[0], "subj01", arrays, 3 if change == "iterations" else 2)
    assert sorted(found) == ([0, 2] if change == "none" else [])


def test_a_stop_leaves_a_file_of_what_is_done(generator, truth, tiny_models, tmp_path, monkeypatch):
    """The command itself: --out has what was made before a stop; another folder of work ends it."""
    arrays, run, out = decoded(generator, 3), tmp_path / "subj01", tmp_path / "out"
    run.mkdir()
    with h5py.File(run / "decoded.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    with h5py.File(run / "reconstructions.h5", "w") as file:
        file["stimulus_id"], file["truth"], file["stage1"] = arrays["stimulus_id"], truth, truth
    monkeypatch.setattr(stage2, "solver_settings", lambda iterations: SOLVERS)
    batch, given = stage2._timed_batch, (run, 3, 2, 2, str(tiny_models), "cpu")

    def stopped(generator, decoded, settings, path):
        if path.parent.name == "algorithm_1" and path.stem == "2":
            raise KeyboardInterrupt
        return batch(generator, decoded, settings, path)

    monkeypatch.setattr(stage2, "_timed_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage2.main(*given, tmp_path / "work", out)
    with h5py.File(out / "algorithm_1_subj01.h5") as file:
        assert file["stimulus_id"][:].tolist() == [0, 1]
    monkeypatch.setattr(stage2, "_timed_batch", batch)
    stage2.main(*given, tmp_path / "elsewhere", out)
    with h5py.File(out / "algorithm_1_subj01.h5") as file:
        assert file["stimulus_id"][:].tolist() == [0, 1, 2]
        assert file["pictures"].shape == (3, 64, 64, 3)
    (run / "decoded.h5").unlink()
    with pytest.raises(InputError, match="02_decoding"):
        stage2.main(*given, tmp_path / "work", out)


def test_the_course_begins_at_stage_1_and_ends_at_the_result(generator, truth, embed, tmp_path):
    arrays = decoded(generator, 3)
    course = follow_course(generator, arrays, truth, embed, PAPER, [0, 2], batch=2)
    for iteration in (0, 2):
        settings = dataclasses.replace(PAPER, iterations=iteration)
        path = reconstruct(generator, arrays, settings, tmp_path / f"{iteration}.h5", batch=2)
        found = course[course.iteration == iteration].set_index("metric").value
        np.testing.assert_allclose(found["pcc"], pcc(truth, read_pictures(path)), atol=1e-9)
        losses = read_trace(path)[0][:, -1].sum(1)
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
