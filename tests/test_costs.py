"""Estimates of what NSD takes: arithmetic against numbers known from elsewhere, and the page."""

import re

import numpy as np
import pytest
from dummy_project import ROOT

from minddiff_utils.decoding.decoders import Method, fit_family, make_design, save_decoder
from studies import costs

PAGE = (ROOT / "book" / "run_nsd.md").read_text("utf-8")
MADE = costs.Counts(1e12, 2e12, {"all": 10**9}, unet_saved=2 * 10**9, decoder_saved=3 * 10**9)


def test_loop_of_the_paper_has_the_published_passes():
    loop = costs.Loop(denoising=35, iterations=300)
    assert (loop.forwards, loop.equivalents) == (21_000, 84_000)
    assert loop.operations(MADE) == 84_000e12 + 900 * 2e12


def test_sizes_of_files():
    assert costs.betas_bytes("subj01") == 750 * 81 * 104 * 83 * 2
    assert costs.files().loc["subj01", "all, GB"] == pytest.approx(42, abs=0.1)  # as published
    assert costs.stimuli_bytes() == 73_000 * 425 * 425 * 3


def test_page_has_what_there_is_to_download():
    four = [f"subj{number:02d}" for number in (1, 2, 5, 7)]
    one, paper = costs.download_bytes("subj01"), costs.download_bytes(*four)
    assert (
        f"about {one / 1e9:.0f} GB (`subj01`), the paper's four about {paper / 1e9:.0f} GB" in PAGE
    )
    few = costs.download_bytes("subj01", sessions=3)
    assert f"three sessions only ({few / 1e9:.0f} GB with the pictures" in PAGE
    assert one == pytest.approx(81.8e9, rel=0.001)  # as `minddiff check` adds them up


def test_command_prints_them(monkeypatch, capsys):
    monkeypatch.setattr(costs, "count", lambda: MADE)
    costs.main()
    said = capsys.readouterr().out
    for line in (
        "to download for subj01, all sessions: 82 GB",
        "to download for subj01, subj02, subj05, subj07, all sessions: 197 GB",
        "to download for subj01, 3 sessions: 43 GB",
        "c of 9000 training pictures: 2.1 GB",
        "batch=12, recompute=False",
    ):
        assert line in said, line
    assert re.search(r"UNet passes +21000.0* +56.0", said)
    assert re.search(r"with gradients +84000.0* +112.0", said)


def test_times_and_memory_follow_from_the_counts():
    table = costs.time_table(MADE)
    row = table.loc["this book's: 14 steps, 2 looks each"]
    operations = 14 * (2 * 3 + 2) * 1e12 + (14 * 2 * 3 + 1) * 2e12
    assert row["80 GB (A100): s"] == pytest.approx(operations / (0.4 * 312e12))
    assert row["80 GB (A100): h"] == pytest.approx(982 * row["80 GB (A100): s"] / 3600)
    loop = costs.Loop(6, 10)
    held = 2e9 + (6 * 38_400 + 16_384) * 128 * 4  # the weights, the projections
    assert costs.memory(MADE, costs.Pass(14, 2), 2, recompute=False) == held + 2 * (2e9 + 3e9)
    assert costs.memory(MADE, loop, 2, recompute=True) == held + 2 * 3e9
    assert costs.memory(MADE, loop, 2, recompute=False) == held + 2 * (6 * 2e9 + 3e9)


def test_decoder_takes_what_its_file_takes(tmp_path):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(200, n)).astype(np.float32) for n in (300, 500))
    decoder = fit_family(make_design(x), y, "c", Method(target_components=100))[0]
    path = save_decoder(decoder, tmp_path / "d.safetensors")
    size = costs.decoder_bytes(100, 300, 500)
    assert size == pytest.approx(path.stat().st_size, rel=0.03)


def test_page_has_the_sizes_of_the_results():
    results = costs.result_bytes()
    for name, size in results.items():
        first = re.split(r"[.,]", name)[0]
        (line,) = re.findall(rf"^\| `{first}[./].*$", PAGE, flags=re.MULTILINE)
        assert line.endswith(f"| {size / 1e9:.1f} GB |")
    assert f"up to {sum(results.values()) / 1e9:.0f} GB" in PAGE
    assert f"take {costs.projection_bytes() / 1e9:.2f} GB" in PAGE


def test_page_has_the_sizes_of_every_subject():
    for subject, row in costs.files().iterrows():
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{subject}`")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:] == [
            row["volume"],
            str(row["sessions"]),
            f"{row['a session, GB']:.2f} GB",
            f"{row['all, GB']:.1f} GB",
        ]


@pytest.mark.slow
def test_page_has_what_the_command_counts():
    counts = costs.count()
    assert counts.parameters["UNet"] == 859_520_964  # as published with the weights
    assert f"{counts.unet / 1e12:.2f} · 10¹²" in PAGE
    assert f"{counts.decoder / 1e12:.2f} · 10¹²" in PAGE
    table = costs.time_table(counts)
    for start, name in (("the paper's", table.index[0]), ("this book's", table.index[1])):
        (line,) = re.findall(rf"^\| {start}.* s \|.*$", PAGE, flags=re.MULTILINE)
        row = table.loc[name]
        assert re.findall(r"([\d,.]+) (?:s|h)\b", line) == [
            _shown(row[f"{gpu}: {unit}"]) for gpu in costs.GPUS for unit in ("s", "h")
        ]
    for recompute in (True, False):
        for loop in costs.LOOPS.values():
            for batch in (1, 2, 4) if isinstance(loop, costs.Pass) else (1, 4):
                size = costs.memory(counts, loop, batch, recompute) / 1e9
                assert f"{size:.0f} GB" in PAGE, (loop, batch, recompute)
    assert f"{costs.feature_bytes() / 1e3:.0f} kB" in PAGE


def _shown(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
