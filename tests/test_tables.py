"""Tables of results: layout, pairing, corrections, and the way from floor to ceiling."""

import numpy as np
import pandas as pd
import pytest
from test_metrics import evaluated as evaluated_fully

from minddiff_utils.evaluation import metrics, tables
from minddiff_utils.evaluation.statistics import bootstrap_interval, holm


def evaluated(n=10):
    return metrics.main_metrics(evaluated_fully(n))


def test_summary_table_has_the_layout_of_the_paper():
    table = tables.summary_table(evaluated())
    made = ["no z", "no stage 2", "both stages, this book's solver"]
    assert list(table.index) == [*made, "mean image", "mine"]
    assert table.loc["mine", "SSIM"] == "1.000 [1.000,\u00a01.000]"
    assert "over images" in tables.markdown_table(table)


def test_summary_is_the_mean_with_its_interval():
    frame = evaluated()
    row = tables.summary(frame).query("method == 'stage1' and metric == 'pcc'").iloc[0]
    values = frame.query("method == 'stage1' and metric == 'pcc'")["value"]
    assert row["mean"] == pytest.approx(values.mean())
    assert (row["low"], row["high"]) == bootstrap_interval(values)


def test_difference_table_pairs_the_same_pictures():
    frame = evaluated().sample(frac=1, random_state=0)  # the order of rows does not matter
    found = tables.differences(frame)
    # no_c is absent, so its pair is.
    pairs = set(zip(found["method"], found["baseline"], strict=True))
    assert pairs == {("stage2", "stage1"), ("stage2", "no_z")}
    ssim = frame.query("metric == 'ssim'")
    wide = ssim.pivot(index="stimulus_id", columns="method", values="value")
    row = found.query("metric == 'ssim' and baseline == 'stage1'").iloc[0]
    assert row["mean"] == pytest.approx((wide["stage2"] - wide["stage1"]).mean())
    table = tables.difference_table(found)
    assert table.index[0] == "both stages − stage 1"
    # 2 of 2^10 flips, the smallest p there is, which all eight tests share.
    assert "p\u00a0=\u00a00.016" in table.iloc[0]["SSIM"]
    assert "corrected by Holm" in table.attrs["note"]


def test_a_missing_value_is_counted_out():
    frame = evaluated()
    gap = (frame["metric"] == "pcc") & (frame["stimulus_id"] == 0)
    frame.loc[gap, "value"] = np.nan
    assert set(tables.summary(frame).query("metric == 'pcc'")["n"]) == {9}
    assert set(tables.summary_table(frame)["n"]) == {"9–10"}


def tidy(**methods):
    """A tidy table of one metric from values a method."""
    table = pd.DataFrame(methods).rename_axis("stimulus_id").reset_index()
    table = table.melt("stimulus_id", var_name="method")
    return table.assign(metric="ssim", subject="subj01")


def test_p_values_are_corrected_within_a_subject():
    one = evaluated().assign(subject="subj01")
    both = pd.concat([one, evaluated(8).assign(subject="subj02")])
    found = tables.differences(both)
    for _, rows in found.groupby("subject"):
        np.testing.assert_allclose(rows["p_holm"], holm(rows["p"]))
    alone = tables.differences(one)
    np.testing.assert_allclose(alone["p_holm"], found[found["subject"] == "subj01"]["p_holm"])


def test_share_is_the_way_from_floor_to_ceiling():
    rng = np.random.default_rng(0)
    floor, ceiling = rng.uniform(0, 0.1, 40), rng.uniform(0.8, 0.9, 40)
    frame = tidy(shuffled=floor, ceiling=ceiling, stage2=floor + 0.25 * (ceiling - floor))
    found = tables.shares(frame).set_index("method")
    assert found.loc["shuffled", "mean"] == 0 and found.loc["ceiling", "mean"] == 1
    assert found.loc["stage2", "mean"] == pytest.approx(0.25)
    assert found.loc["stage2", "low"] == pytest.approx(0.25)  # so it is for every resample
    assert "25\u00a0%" in tables.share_table(frame).loc["both stages, this book's solver", "SSIM"]


def test_the_floor_is_the_best_control_that_knows_nothing():
    rng = np.random.default_rng(0)
    lows = {"mean": 0.3, "shuffled": 0.1, "stage2": 0.5, "ceiling": 0.8}
    parts = {name: rng.uniform(low, low + 0.1, 40) for name, low in lows.items()}
    means = {name: values.mean() for name, values in parts.items()}
    frame = tidy(**parts, retrieval=np.full(40, 0.7))  # which looks at the responses
    found = tables.shares(frame).set_index("method")["mean"]
    way = means["ceiling"] - means["mean"]
    assert found["stage2"] == pytest.approx((means["stage2"] - means["mean"]) / way)
    assert found["shuffled"] == pytest.approx((means["shuffled"] - means["mean"]) / way)
    assert "mean image (SSIM)" in tables.share_table(frame).attrs["note"]
    stage1 = frame.replace({"stage2": "stage1"})
    row = tables.differences(stage1, tables.ORDER_PAIRS).set_index("method").loc["stage1"]
    assert row["baseline"] == "floor"
    assert row["mean"] == pytest.approx(means["stage2"] - means["mean"])


def test_the_solver_that_ran_stands_for_both_stages():
    frame = evaluated()
    paper = frame.replace({"method": {"stage2": "algorithm_1"}})
    found = tables.differences(paper)
    pairs = set(zip(found["method"], found["baseline"], strict=True))
    assert pairs == {("algorithm_1", "stage1"), ("algorithm_1", "no_z")}
    assert found["mean"].tolist() == tables.differences(frame)["mean"].tolist()


def test_results_files_hold_the_same_numbers(tmp_path):
    one = evaluated().assign(subject="subj01")
    two = evaluated(8).assign(subject="subj02")
    extra = {"stage1": "shuffled", "mine": "ceiling"}
    both = pd.concat([one, two]).replace({"method": extra})
    path = tables.write_results(tmp_path, both)
    table = pd.read_csv(tmp_path / "results.csv").set_index(["subject", "method", "metric"])
    values = both.query("subject == 'subj02' and method == 'stage2' and metric == 'pcc'")["value"]
    row = table.loc["subj02", "stage2", "pcc"]
    assert row["mean"] == pytest.approx(values.mean()) and row["n"] == 8
    means = [table.loc[who, "stage2", "pcc"]["mean"] for who in ("subj01", "subj02")]
    mean = table.loc["mean of 2", "stage2", "pcc"]
    assert mean["mean"] == pytest.approx(np.mean(means))
    assert mean[["n", "low", "high"]].isna().all()  # two people are no sample
    shares = [table.loc[who, "stage2", "pcc"]["share"] for who in ("subj01", "subj02")]
    assert mean["share"] == pytest.approx(np.mean(shares)) and 0 < min(shares)
    text = path.read_text(encoding="utf-8")
    assert f"{row['mean']:.3f}".lstrip("0") in text and "| mean of 2 |" in text
    assert "corrected by Holm" in text and "Share of the way" in text


def test_first_page_shows_a_few_rows_of_the_file(tmp_path):
    one = evaluated().assign(subject="subj01")
    two = evaluated(8).assign(subject="subj02")
    tables.write_results(tmp_path, pd.concat([one, two]))
    found = pd.read_csv(tmp_path / "results.csv")
    table = tables.front_table(found)
    chosen = "method == 'no_z' and metric == 'ssim'"
    means = [part.query(chosen)["value"].mean() for part in (one, two)]
    texts = [f"{value:.3f}".replace("0.", ".", 1) for value in (np.mean(means), *means)]
    assert table.loc["no z", "SSIM"] == f"{texts[0]} ({texts[1]},\u00a0{texts[2]})"
    alone = tables.front_table(found[found["subject"] == "subj01"])
    row = found.query("subject == 'subj01' and method == 'no_z' and metric == 'ssim'").iloc[0]
    assert alone.loc["no z", "SSIM"] == tables.interval_text(row["mean"], row["low"], row["high"])


def test_seed_spread_is_told_apart_from_the_spread_of_pictures():
    rng = np.random.default_rng(0)
    picture = rng.normal(0, 1, 400)
    made = [picture + 0.1 * seed + rng.normal(0, 0.3, 400) for seed in range(3)]
    parts = [tidy(stage2=values).assign(seed=seed) for seed, values in enumerate(made)]
    row = tables.seed_table(pd.concat(parts)).loc["both stages, this book's solver"]
    assert row["draws"] == "3" and row["metric"] == "SSIM"
    assert float(row["SD of means"]) == pytest.approx(0.1, rel=0.3)
    assert float(row["SD in an image"]) == pytest.approx(np.hypot(0.3, 0.1), rel=0.1)
    assert float(row["SD of images"]) == pytest.approx(np.sqrt(1 + 0.09 / 3), rel=0.1)
    row = tables.seed_table(parts[0]).loc["both stages, this book's solver"]
    assert row["SD of means"] == "–" and float(row["SD of images"]) > 0
