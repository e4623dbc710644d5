"""The small decoder for gradients: where it comes from, what it changes, how it is distilled."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import torch
from builders import refuses, study
from diffusers import AutoencoderTiny
from test_guided_sampling import QUICK
from test_reconstruction import decoded

from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.results import describe
from studies import tiny_decoder, training
from studies.held_out import MODELS
from studies.training import TrainingSet


def test_taesd_has_the_size_of_the_published_file():
    # 9,793,292 bytes in float32, of which the header is the rest.
    size = 4 * sum(value.numel() for value in AutoencoderTiny().state_dict().values())
    assert 0 < 9_793_292 - size < 30_000


def test_a_missing_one_is_named_and_full_needs_none(tiny_models, tmp_path):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    shutil.rmtree(models / "tiny_decoder")
    generator = load_generator(models, "cpu")
    arrays, tiny = decoded(generator), replace(QUICK, gradient_decoder="tiny")
    describe(generator, arrays, QUICK)
    refuses("tiny_decoder lacks config.json", describe, generator, arrays, tiny)


def test_a_result_names_the_weights_of_its_small_decoder(tiny_models, tmp_path):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    tiny = replace(QUICK, gradient_decoder="tiny")
    records = []
    for _ in range(2):
        generator = load_generator(models, "cpu")
        records += [describe(generator, decoded(generator), each) for each in (QUICK, tiny)]
        other = AutoencoderTiny.from_config(AutoencoderTiny.load_config(models / "tiny_decoder"))
        other.save_pretrained(models / "tiny_decoder")
    assert records[0] == records[2] and records[1] != records[3]


def test_distilling_lowers_the_loss(generator, tmp_path, monkeypatch):
    monkeypatch.setitem(training.BATCH, "tiny_decoder", 4)
    tiny = tiny_decoder.distil(generator, TrainingSet(tmp_path, 16), tmp_path, 0.1)
    losses = training.read_checkpoint(tmp_path / "tiny_decoder.pt")["progress"]["losses"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])
    assert all(torch.isfinite(value).all() for value in tiny.state_dict().values())


def test_the_study_leaves_a_decoder_that_loads_and_its_record(tiny_models, tmp_path):
    out = shutil.copytree(tiny_models, tmp_path / "out")
    for name in ("training.json", "curves.csv"):
        shutil.copy(MODELS / name, out)
    before = load_generator(out, "cpu").tiny_fingerprint
    given = ["--out", out, "--work", tmp_path, "--pictures", 40, "--minutes", 0.01]
    said = study("tiny_decoder", *given, "--device", "cpu")
    about = json.loads((out / "training.json").read_text())
    assert about["tiny_decoder"]["steps"] > 0 and "unet" in about
    assert int(re.search(r"([\d,]+) weights", said)[1].replace(",", "")) < 100_000
    assert load_generator(out, "cpu").tiny_fingerprint != before
