"""`minddiff evaluate`: known truths, oracles, the order test, and the commands of its page."""

import re
import resource
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from builders import ROOT, refuses
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from minddiff_utils.cli import app
from minddiff_utils.evaluation import metrics, scoring
from minddiff_utils.evaluation.identification import (
    identification_accuracy,
    pairwise_identification,
    retrieval_accuracy,
)
from minddiff_utils.evaluation.metrics import blurred
from minddiff_utils.evaluation.panel import PUBLISHED, panel_table
from minddiff_utils.evaluation.pictures import open_pictures
from minddiff_utils.evaluation.statistics import effective_dimension
from minddiff_utils.evaluation.tables import differences, summary_table
from minddiff_utils.io import method_file
from minddiff_utils.reconstruction.results import write_pictures

N = 40


def scenes(n=N, side=48, seed=0):
    """Coloured blobs: smooth enough for a blur to be told from them."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side, 3))
    wide = gaussian_filter(noise, (0, 3, 3, 0)) + 0.15 * noise
    return np.rint(255 * np.clip(0.5 + wide * 2, 0, 1)).astype(np.uint8)


def colours(pictures):
    """A judge that is a few lines long: the colours of 36 patches, without their mean."""
    small = np.stack([np.asarray(Image.fromarray(p).resize((6, 6), 4)) for p in pictures])
    rows = small.reshape(len(small), -1).astype(float)
    return rows - rows.mean(axis=1, keepdims=True)


EMBED = {"clip_judge": colours}
TRUTH = scenes()
PAINTED = (0.6 * TRUTH + 0.4 * scenes(seed=1)).astype(np.uint8)


@pytest.fixture
def opened(tmp_path):
    """A function that opens arrays as pictures."""

    def opening(values, name="a"):
        np.save(tmp_path / f"{name}.npy", values)
        return open_pictures(str(tmp_path / f"{name}.npy"))

    return opening


def judged(opened, made):
    """Scores of a method, wide, and its look and the truth's."""
    truth, made = opened(TRUTH, "truth"), opened(made, "made")
    seen, one = scoring.look(truth, EMBED), scoring.look(made, EMBED)
    tidy = scoring.scores(truth, made, seen.embedded, one.embedded)
    wide = tidy.pivot(index="stimulus_id", columns="metric", values="value")
    return wide.loc[list(truth.names)], seen, one


# --- known truths ---------------------------------------------------------------------------------


def test_the_truth_scores_one(opened):
    values, seen, one = judged(opened, TRUTH)
    np.testing.assert_allclose(values, 1)
    found = retrieval_accuracy(one.embedded["clip_judge"], seen.embedded["clip_judge"], 20)
    assert (found == 1).all()
    last = scoring.make_controls("m", opened(TRUTH), opened(TRUTH), one.embedded)[-1]
    assert last.method == "m: wrong rows"  # as sharp as the truth: no blur


def test_another_rows_truth_is_at_chance(opened):
    values, seen, one = judged(opened, np.roll(TRUTH, 7, axis=0))
    rows = one.embedded["clip_judge"], seen.embedded["clip_judge"]
    assert values["clip_judge"].abs().mean() < 0.25 and values["pcc"].abs().mean() < 0.25
    assert abs(identification_accuracy(*rows).mean() - 0.5) < 0.15
    assert retrieval_accuracy(*rows, 20).mean() < 0.1
    assert scoring.order_test(seen, one).suspicious


def test_one_picture_for_all_has_one_dimension_and_is_at_chance(opened):
    _, seen, one = judged(opened, np.repeat(TRUTH[:1], N, axis=0))
    rows = one.embedded["clip_judge"], seen.embedded["clip_judge"]
    assert effective_dimension(rows[0]) == (1, 1) < effective_dimension(rows[1])
    assert identification_accuracy(*rows).mean() == pytest.approx(0.5)
    assert identification_accuracy(*rows[::-1]).mean() == pytest.approx(0.5)  # all ties: by lot
    assert (pairwise_identification(*rows[::-1]) == 0).all()  # bdpy: a tie is no hit
    forward, backward = retrieval_accuracy(*rows, n_way=20).T
    assert forward.mean() == pytest.approx(1 / 20, abs=0.01) and (backward == 0).all()
    assert not scoring.order_test(seen, one).suspicious


def test_a_picture_of_one_colour_is_named_and_crashes_nothing(opened):
    made = PAINTED.copy()
    made[3] = 128
    values, seen, one = judged(opened, made)
    assert values["pcc"].iloc[3] == 0 and values.notna().all().all()
    names = [f"picture {n}" for n in range(N)]
    said = "Images of one colour (PCC is NaN): mine: 1 (picture 3), counted as 0 in its PCC."
    assert scoring.flat_note(names, seen, {"mine": one}) == said
    assert scoring.flat_note(names, seen, {}) == ""


# --- oracles --------------------------------------------------------------------------------------


def test_scores_of_files_are_those_of_chapter_05(opened, tmp_path):
    for number, picture in enumerate(PAINTED):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    truth, made = opened(TRUTH), open_pictures(str(tmp_path))
    seen, one = (scoring.look(pictures, EMBED).embedded for pictures in (truth, made))
    found = scoring.scores(truth, made, seen, one).set_index(["metric", "stimulus_id"])["value"]
    book = metrics.evaluate(TRUTH, {"m": PAINTED}, np.arange(N), EMBED)
    for metric in ("clip_judge", "ssim", "pcc"):
        np.testing.assert_array_equal(found[metric], book[book["metric"] == metric]["value"])


def test_retrieval_is_that_of_a_loop_and_its_mean_the_exact_expectation():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(60, 8))
    made = true + rng.normal(size=(60, 8))
    found = retrieval_accuracy(made, true, n_way=25, n_draws=3, seed=5)
    again = np.random.default_rng(5)
    for draw in range(3):
        rows = again.choice(60, 25, replace=False)
        cosines = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in true[rows]] for a in made[rows]]
        ways = cosines, list(zip(*cosines, strict=True))
        hits = [sum(max(row) == row[k] for k, row in enumerate(way)) for way in ways]
        np.testing.assert_allclose(found[draw], np.array(hits) / 25)
    many = retrieval_accuracy(made, true, n_way=25, n_draws=3000).mean(axis=0)
    exact = [identification_accuracy(a, b, 25).mean() for a, b in ((made, true), (true, made))]
    np.testing.assert_allclose(many, exact, atol=0.005)


def test_blur_leaves_the_truth_as_sharp_as_the_method(opened):
    truth = opened(TRUTH, "t")
    for share in (0.02, 0.04, 0.08):
        soft = opened(blurred(TRUTH, share), "s")
        powers = scoring.power_spectrum(truth), scoring.power_spectrum(soft)
        found = scoring.matched_blur(*powers)
        assert found == pytest.approx(share, rel=0.15)
        blurred_by = scoring.sharpness(powers[0], found)
        assert blurred_by == pytest.approx(scoring.sharpness(powers[1]), rel=1e-3)
    assert scoring.matched_blur(powers[1], powers[0]) == 0


def test_the_order_test_finds_a_wrong_order_and_lets_weak_methods_be(opened):
    rng = np.random.default_rng(3)
    weak = (0.25 * TRUTH + 0.75 * scenes(seed=9)).astype(np.uint8)
    assert not scoring.order_test(*judged(opened, weak)[1:]).suspicious
    as_text = sorted(range(N), key=str)  # 0, 1, 10, 11 … 2, 20
    for order in (as_text, np.roll(range(N), 1), rng.permutation(N)):
        _, seen, one = judged(opened, PAINTED[order])
        found = scoring.order_test(seen, one)
        assert found.suspicious and found.best > 0.95
        note = scoring.order_note({"mine": found})
        assert note.startswith("WARNING: mine: in another order") and "the wrong pairs" in note


def test_conclusions_follow_from_the_tests(opened):
    truth, made = opened(TRUTH, "t"), opened(PAINTED, "m")
    seen, one = scoring.look(truth, EMBED), scoring.look(made, EMBED)
    known = {"clip_judge": colours(TRUTH)}  # trained on the test pictures
    controls = scoring.make_controls("mine", truth, made, one.embedded)
    controls.append(scoring.nearest_control("mine", one.embedded, truth, known))
    assert controls[-1].about == f"{N} of {N} stand for {N} reconstructions"
    parts = {"mine": scoring.scores(truth, made, seen.embedded, one.embedded)}
    for control in controls:
        embedded = control.embedded or scoring.look(control.pictures, EMBED).embedded
        parts[control.method] = scoring.scores(truth, control.pictures, seen.embedded, embedded)
    values = pd.concat(parts, names=["method", None]).reset_index("method")
    said = scoring.conclusions(differences(values, scoring.all_pairs(["mine"])))
    assert any("which image was seen" in s and "SSIM, PCC" in s for s in said)
    assert any("looking them up does as well" in s and "CLIP (judge)" in s for s in said)
    assert summary_table(values).loc["mine: nearest training image", "PCC"].startswith("1.000")


# --- the command ----------------------------------------------------------------------------------


TEXT = (ROOT / "book" / "evaluate.md").read_text("utf-8")
FOUND = re.findall(r"^minddiff (evaluate .+)$", TEXT.replace("\\\n", " "), re.MULTILINE)
SLOW = [pytest.param(line, marks=pytest.mark.slow) for line in FOUND[1:]]


@pytest.fixture(scope="module")
def files(tmp_path_factory, tree):
    """A folder that holds what the commands of the page name."""
    folder = tmp_path_factory.mktemp("user")
    stacks = {"seen": scenes(16, 64), "mine": PAINTED[:16], "trained": scenes(16, 32, seed=4)}
    for name, stack in stacks.items():
        (folder / name).mkdir()
        for number, picture in enumerate(stack):
            suffix = "jpg" if name == "mine" else "png"
            Image.fromarray(picture).save(folder / name / f"{name}_{number:02d}.{suffix}")
    for name in ("truth", "stage2"):
        write_pictures(method_file(folder, name), range(16), stacks["seen"])
    torch.save(torch.tensor(stacks["mine"].transpose(0, 3, 1, 2) / 255), folder / "all_recons.pt")
    np.save(folder / "theirs.npy", stacks["mine"])
    (folder / "models").symlink_to(ROOT / "minddiff_utils" / "phantom" / "weights")
    (folder / "nsd").symlink_to(tree)
    return folder


def minddiff(words):
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize("line", [FOUND[0], *SLOW])
def test_commands_of_the_page_do_what_it_says(line, files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = shlex.split(line)
    answer = minddiff(words)
    out = files / words[words.index("--out") + 1]
    assert answer.exit_code == 0 and answer.stdout.strip() == str(out / "index.html")
    names = {"index.html", "gallery.html", "results.md", "results.csv", "values.csv"}
    assert names | {"evaluate.ipynb"} <= {path.name for path in out.iterdir()}
    page = (out / "index.html").read_text("utf-8")
    assert "/clip_judge" in page and "{{" not in page
    links = re.findall(r' (?:src|href)="([^"]{1,300})', page + (out / "gallery.html").read_text())
    assert {link for link in links if not link.startswith("data:")} == {"gallery.html"}
    values = pd.read_csv(out / "values.csv")
    methods = [name for name in values["method"].unique() if ":" not in name]
    assert methods == re.findall(r" (\w+)=", line)
    assert ("nearest training image" in page.split("<table>")[2]) == ("--training" in line)
    assert ("CLIP (guide)" in page) == ("--guide" in line)
    assert ("in another order " in capfd.readouterr().err) == ("WARNING: " in page)


@pytest.mark.parametrize("word", ["mine", "a|b=mine"])
def test_words_that_are_no_method_are_named(word, files, monkeypatch):
    monkeypatch.chdir(files)
    words = ["evaluate", "--truth", "seen", "--reconstructions", word]
    refuses(re.escape(f"{word}: expected NAME=PATH"), minddiff, words)


def test_the_page_names_every_option():
    options = typer.main.get_command(app).commands["evaluate"].params
    assert {o.opts[0] for o in options if o.opts[0] not in TEXT} <= {"more"}


def test_published_rows_stand_beside_nsd_alone():
    ours = {"mine": {"PixCorr": np.array([0.3]), "SSIM": np.array([0.4])}}
    table = panel_table(ours)
    assert list(table.index) == [*PUBLISHED, "mine"] and len(PUBLISHED) == 8
    assert table.loc["MindTuner 2025"].tolist()[:2] == [".322", ".421"]
    assert table.loc["Brain-IT, one hour"].tolist()[:3] == [".331", ".473", "–"]
    papers = {"arXiv 2403.11207", "arXiv 2404.12630", "arXiv 2510.25976"}
    assert set(table["source"]) == papers | {"this run"}
    assert list(panel_table(ours, published=False).index) == ["mine"]


@pytest.mark.slow
def test_what_the_notebook_refuses_is_told_in_one_sentence(files, monkeypatch, tmp_path):
    """A count that differs, found before any network is loaded; nothing is left behind."""
    monkeypatch.chdir(files)
    np.save(tmp_path / "few.npy", PAINTED[:9])
    words = ["evaluate", "--truth", "seen", "--reconstructions", f"mine={tmp_path / 'few.npy'}"]
    words += ["--out", str(tmp_path / "out")]
    refuses("^mine has 9 pictures, the truth 16 pictures", minddiff, words)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".minddiff-run"]


@pytest.mark.slow
def test_a_thousand_pictures_of_three_methods_fit_into_time_and_memory(tmp_path, monkeypatch):
    """Of 64 to 512 pixels: two processors for four minutes, 3 GiB, and a gallery of 20 MB."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def drawn(side):
        patches = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        return patches.resize((side, side), Image.Resampling.BICUBIC)

    for name, side, suffix in (("truth", 425, "png"), ("large", 512, "jpg")):
        (tmp_path / name).mkdir()
        for number in range(1000):
            drawn(side).save(tmp_path / name / f"{number}.{suffix}")
    small, middle = (np.stack([drawn(side) for _ in range(1000)]) for side in (64, 256))
    np.save("small.npy", small)
    torch.save(torch.tensor(middle.transpose(0, 3, 1, 2) / np.float32(255)), "middle.pt")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    judge = ROOT / "minddiff_utils" / "phantom" / "weights" / "clip_judge"
    words = "evaluate --truth truth --reconstructions large=large middle=middle.pt small=small.npy"
    minddiff([*words.split(), "--judge", str(judge), "--out", "out"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    size = (tmp_path / "out" / "gallery.html").stat().st_size
    memory = used.ru_maxrss / 2**20
    print(f"{seconds:.0f} processor s, {memory:.2f} GiB, gallery {size / 1e6:.1f} MB")
    assert seconds < 480 and used.ru_maxrss < 3 * 2**20 and size < 20e6
