"""The order that the book claims, on a fast run: a small phantom with the trained models.

Takes minutes: `pytest -m slow tests/test_ladder.py`.
"""

from pathlib import Path

import numpy as np
import pytest

import minddiff_utils
from minddiff_utils.datasets import load_subject
from minddiff_utils.decoding.decode import decode_subject, read_decoded
from minddiff_utils.decoding.features import write_features
from minddiff_utils.evaluation.control_runs import make_control, open_bench
from minddiff_utils.evaluation.identification import (
    identification_accuracy,
    pairwise_identification,
)
from minddiff_utils.evaluation.metrics import evaluate, main_metrics
from minddiff_utils.evaluation.statistics import bootstrap_interval
from minddiff_utils.evaluation.tables import ladder, shares
from minddiff_utils.models.stable_diffusion import load_clip, load_generator
from minddiff_utils.phantom.nsd_writer import write_tree
from minddiff_utils.reconstruction.stages import read_pictures, reconstruct
from minddiff_utils.settings import Settings

pytestmark = pytest.mark.slow
WEIGHTS = Path(minddiff_utils.__file__).parent / "phantom" / "weights"
METRICS = ("clip_judge", "ssim", "pcc")
# One deal of the responses makes one wrong decoder, whose pictures all err together.
DEALS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Values of every step from the floor to the ceiling, and the judge's embeddings."""
    out = tmp_path_factory.mktemp("ladder")
    size = {"n_train": 400, "n_test": 32, "repetitions": 3}
    tree = write_tree(out / "tree", subjects=["subj01"], progress=False, **size)
    person = load_subject("nsd", tree, "subj01", rois="kastner2015", cache=out)
    generator = load_generator(WEIGHTS, "cpu", "float32")
    features = write_features(out / "features.h5", person, generator)
    decode_subject(person, features, out / "decoded.h5")
    shuffled = []
    for deal in range(DEALS):
        path = decode_subject(person, features, out / f"shuffled_{deal}.h5", shuffle_seed=deal)
        shuffled.append(read_decoded(path))
    first, full = Settings(solver="algorithm_1", iterations=0), Settings()
    decoded = read_decoded(out / "decoded.h5")
    reconstruct(generator, decoded, first, out / "stage1.h5")
    reconstruct(generator, decoded, full, out / "trace.h5")
    bench = open_bench(person, generator, out)
    made = {
        "shuffled": bench.run(shuffled[0], full, "shuffled"),
        "stage1": read_pictures(out / "stage1.h5"),
        "stage2": read_pictures(out / "trace.h5"),
        "ceiling": make_control("ceiling", bench),
    }
    ids = decoded["stimulus_id"]
    judge = load_clip(WEIGHTS / "clip_judge", "cpu", "float32")
    values = main_metrics(evaluate(bench.seen(ids), made, ids, {"clip_judge": judge.embed}))
    embedded = {name: [judge.embed(pictures)] for name, pictures in made.items()}
    for deal, part in enumerate(shuffled[1:], 1):
        embedded["shuffled"].append(judge.embed(bench.run(part, full, f"shuffled_{deal}")))
    return values, embedded, judge.embed(bench.seen(ids))


@pytest.mark.parametrize("metric", METRICS)
def test_floor_below_stage_1_below_stage_2_below_ceiling(run, metric):
    found = ladder(run[0][run[0]["metric"] == metric]).set_index(["baseline", "method"])
    assert found.loc[("shuffled", "stage1"), "verdict"] == "yes"
    assert found.loc[("stage2", "ceiling"), "verdict"] == "yes"
    # What stage 2 adds is small: on a fast run the interval may hold zero, but not lie below it.
    assert found.loc[("stage1", "stage2"), "verdict"] != "reversed"


def test_stage_2_covers_part_of_the_way(run):
    found = shares(run[0]).query("method == 'stage2'").set_index("metric")
    assert (found["low"] > 0).all() and (found["high"] < 1).all()


def test_shuffled_responses_identify_at_chance(run):
    _, embedded, true = run
    for measure, chance in (
        (lambda made: identification_accuracy(made, true, 2), 1 / 2),
        (lambda made: identification_accuracy(made, true, 10), 1 / 10),
        (lambda made: pairwise_identification(made, true), 1 / 2),
    ):
        low, high = bootstrap_interval(np.mean([measure(e) for e in embedded["shuffled"]], axis=0))
        assert low <= chance <= high
    # The same measure is far from chance where the brain was read.
    (stage1,) = embedded["stage1"]
    assert bootstrap_interval(identification_accuracy(stage1, true, 2))[0] > 0.6
