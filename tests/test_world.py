"""The phantom's world: the same everywhere, varied, and described truthfully."""

import hashlib

import numpy as np
import pytest

from minddiff_utils.phantom import world

# A change here means other pictures, and models that were trained on pictures that are no more.
SHA256 = {
    0: "d75f62849e53fa37afa0cef62d6895bff5244a4526acff01f45f58af7a4afdb8",
    5: "b39f46a807cf732e575a8a150068a445e7bcdce49f5d4968d27a1d2355a80148",
    7: "1e6fac11e869a3423226ffe7b914a2979483f1cc2dadcf6b7ecce3a7840a3ae2",
    900_000: "7718deed0ed665cfffb866f519bbedf0002478bf4299df5cea2b9efa05e0f23f",
    1_000_000: "2ddc0316c24f64470c9640a2854160dcde713a0a0fd0e6f09a4c2f53f2e00b3c",
}
CAPTIONS_SHA256 = "f23f3dec802ee90aa7656bc3075b4011f890a883420a6c30cc4873931d96919d"
SOME = (*range(40), *range(world.FIRST_WIDER_ID, world.FIRST_WIDER_ID + 20))
OUTSIDE = range(world.FIRST_OUTSIDE_ID, world.FIRST_OUTSIDE_ID + 48)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("i", SHA256)
def test_a_picture_is_the_same_on_every_machine(i):
    picture = world.picture(i)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert digest(picture.tobytes()) == SHA256[i]


def test_captions_are_the_same_on_every_machine():
    text = "\n".join(caption for i in range(200) for caption in world.captions(i))
    assert digest(text.encode()) == CAPTIONS_SHA256


@pytest.mark.parametrize("i", [*SOME, *OUTSIDE])
def test_five_short_captions_name_everything(i):
    scene, texts = world.scene(i), world.captions(i)
    assert len(texts) == len(set(texts)) == 5
    for number, text in enumerate(texts):
        assert len(text.split()) <= 30 and text == text.lower()
        for thing in scene.things:
            assert thing.kind in text.split() and thing.colour in text.split()
            assert any(word in text.split() for word in world.WORDS[world.size_word(thing.size)])
            across = world.place(thing)[0]
            assert any(word.split()[-1] in text.split() for word in world.WORDS[across])
        if scene.things:
            assert any(phrase in text for phrase in world.WORDS[scene.setting])
        elif scene.pattern is not None and number != 3:
            assert "grey" in text
    if scene.things:
        upright = {world.place(thing)[1] for thing in scene.things}
        assert all(word in " ".join(texts) for word in upright)


@pytest.mark.parametrize("i", SOME)
def test_a_thing_shows_its_colour_where_it_is_said_to_be(i):
    scene = world.scene(i)
    for thing in scene.things[-1:]:  # the last is drawn over the others
        both = (scene._replace(things=things) for things in ((thing,), ()))
        with_it, without = (world.render(one, i).astype(int) for one in both)
        changed = np.abs(with_it - without).sum(axis=2) > 30
        rows, columns = np.nonzero(changed)
        assert 20 < changed.sum() < 40 * 40
        assert abs(columns.mean() - thing.x) < thing.size / 3
        assert abs(rows.mean() - thing.y) < thing.size / 3
        distance = np.abs(with_it[changed] - world.COLOURS[thing.colour]).sum(axis=1)
        assert (distance < 60).mean() > 0.08


# -------------------------------------------------------------------------- from outside of it

# The same bytes on every machine, but for rounding in gratings.
OUTSIDE_SHA256 = "1df4d84c7569471c09be733633fdfb920425badbe72d35f3ec209edd07ad8917"


def test_pictures_from_outside_are_the_same_on_every_machine_and_no_two_alike():
    drawn = [world.picture(i) for i in OUTSIDE]
    assert {(one.shape, str(one.dtype)) for one in drawn} == {((64, 64, 3), "uint8")}
    assert len({one.tobytes() for one in drawn}) == len(drawn)
    exact = [d.tobytes() for i, d in zip(OUTSIDE, drawn, strict=True) if (i - OUTSIDE[0]) % 6]
    assert digest(b"".join(exact)) == OUTSIDE_SHA256
