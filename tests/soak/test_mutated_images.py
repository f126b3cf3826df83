"""What is sent to the service by tests/soak/mutated_images.py: good pictures are good, and spoilt ones repeatable."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from app.errors import VestibuleError
from app.images.decoding import ImageLimits, decode
from benchmarks import tables
from tests.soak import image_mutations, mutated_images
from tests.soak.image_mutations import MUTATIONS, PNG_MAGIC, good, lie, with_sums

LIMITS = ImageLimits(bytes=2**25, pixels=10_000)
FORMS = sorted(good(32))


@pytest.mark.parametrize("form", FORMS)
def test_every_good_picture_shows_the_same(form: str) -> None:
    whole, image = decode(good(32)["PNG"], LIMITS), decode(good(32)[form], LIMITS)
    assert image.size == whole.size
    # The top left corner is background and the middle is face, whatever the form makes of colours and orientation.
    for place in ((2, 2), (16, 16)):
        pair = (image.convert("L").getpixel(place), whole.convert("L").getpixel(place))
        assert pair[0] == pytest.approx(pair[1], abs=48)


@pytest.mark.parametrize("form", FORMS)
def test_a_lie_is_about_what_the_decoder_reads(form: str) -> None:
    sizes = set[object]()
    for seed in range(60):
        try:
            sizes.add(decode(lie(random.Random(seed), good(32)[form]), LIMITS).size)
        except VestibuleError as error:
            sizes.add(type(error).__name__)
    assert "ImageTooLarge" in sizes or form.startswith("GIF")
    assert len(sizes) > 2


def test_checksums_are_mended_and_nothing_else() -> None:
    whole = good(32)["PNG"]
    assert with_sums(whole) == whole
    broken = bytearray(whole)
    broken[16:20] = struct.pack(">I", 31)
    mended = with_sums(bytes(broken))
    assert mended[:29] == broken[:29]
    assert mended[29:33] != whole[29:33]
    assert mended[33:] == whole[33:]
    assert with_sums(PNG_MAGIC + b"\xff\xff\xff\xffIHDR") == PNG_MAGIC + b"\xff\xff\xff\xffIHDR"


def test_a_request_is_the_same_whatever_was_sent_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_mutations, "bombs", lambda: (b"a bomb",))  # which take a second to make
    made = [mutated_images.request(0, number) for number in range(300)]
    assert made[299] == mutated_images.request(0, 299)
    assert made[299] != mutated_images.request(1, 299)
    assert {sent.mutation for sent in made} == {*MUTATIONS, mutated_images.GOOD}
    assert {sent.form for sent in made} == set(FORMS)
    assert [sent.mutation for sent in made[9::10]] == [mutated_images.GOOD] * 30


def test_a_run_goes_on_only_where_the_last_one_ended(tmp_path: Path) -> None:
    counts = mutated_images.counted(tmp_path / "none.csv", 0)
    counts["/classify", "splice"].update({"sent": 3, "200": 1, "400": 2})
    counts["/verify", "bomb"].update({"sent": 1, "413": 1})
    rows = list(mutated_images.rows(counts))
    assert rows[-1] | {"endpoint": "all", "sent": 4, "200": 1, "400": 2, "413": 1} == rows[-1]
    tables.write(tmp_path / "some.csv", list(rows[0]), rows)
    again = mutated_images.counted(tmp_path / "some.csv", 4)
    assert list(mutated_images.rows(again)) == rows
    with pytest.raises(ValueError, match="go on with --from 4"):
        mutated_images.counted(tmp_path / "some.csv", 5)
