"""Estimates of what NSD takes: arithmetic against numbers known from elsewhere, and the page."""

import re

from builders import ROOT, study

from studies import needs

PAGE = (ROOT / "book" / "run_nsd.md").read_text("utf-8")
MADE = needs.Counts(1e12, 2e12, {"all": 10**9}, unet_saved=2 * 10**9, decoder_saved=3 * 10**9)


def test_command_prints_what_the_page_shows(monkeypatch):
    monkeypatch.setattr(needs, "count", lambda: MADE)
    said = study("needs")
    one, paper = needs.download_gigabytes("subj01"), needs.download_gigabytes(*needs.PAPERS)
    assert f"to download for subj01, all sessions: {one:.0f} GB" in said
    assert f"about {one:.0f} GB (`subj01`), the paper's four about {paper:.0f} GB" in PAGE
    parts = needs.download_gigabytes("subj01", partly=True)
    assert f"in parts, for subj01, all: {parts:.0f} GB" in said
    assert f"about {parts:.0f} GB for `subj01`, in place of {one:.0f} GB" in " ".join(PAGE.split())
    assert re.search(r"UNet passes +21000.0* +50.0", said)


def test_page_has_what_the_command_counts():
    counts = needs.count()
    assert counts.parameters["UNet"] == 859_520_964  # as published with the weights
    assert f"{counts.unet / 1e12:.2f} · 10¹²" in PAGE
    assert f"{counts.decoder / 1e12:.2f} · 10¹²" in PAGE
    table = needs.time_table(counts)
    for start, name in (("the paper's", table.index[0]), ("this book's", table.index[1])):
        (line,) = re.findall(rf"^\| {start}.* s \|.*$", PAGE, flags=re.MULTILINE)
        times = [table.loc[name, f"{gpu}: {unit}"] for gpu in needs.GPUS for unit in ("s", "h")]
        shown = [f"{time:.1f}" if time < 10 else f"{time:,.0f}" for time in times]
        assert re.findall(r"([\d,.]+) (?:s|h)\b", line) == shown
    for sizes in needs.memory_table(counts)[["batch=1", "batch=2", "batch=4"]].to_numpy():
        assert " | ".join(f"{size:.0f} GB" for size in sizes) in PAGE
