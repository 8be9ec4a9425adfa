"""The invisible mark: it says what was put in, survives what happens to clips, and is not seen where there is none."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from omokage.errors import InternalError
from omokage.trust import mark_code, mark_pattern, mark_search, video_mark
from omokage.trust.label import draw_label
from omokage.trust.mark_pattern import (
    PRIVATE_BITS,
    PUBLIC_BITS,
    PUBLIC_KEY,
    PUBLIC_PAYLOAD,
    TORUS,
    Chips,
    chips_of,
)
from omokage.trust.mark_search import (
    LEAST_PRIVATE_SCORE,
    LEAST_PUBLIC_SCORE,
    PRESENT,
    Evidence,
    Found,
    Key,
    find,
)
from omokage.trust.mark_signal import chip_px
from omokage.trust.video_mark import LEAST_SIDE_PX, PUBLIC_SHARE, Mark, Marker, Profile, can_be_marked

Picture = NDArray[np.uint8]
SECRET = b"a secret of a test".ljust(32, b".")
GOLDEN_PUBLIC = "b903cecce300bce1aa90d5d8c060b7fd6555a01185f288f58e550a428f97fd5a"
PUBLIC = Key(chips_of(PUBLIC_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE)


def private(key: bytes) -> Key:
    return Key(chips_of(key, PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)


def found(pictures: Sequence[Picture], *keys: bytes) -> list[Found]:
    """What the public and these private keys find, in this order."""
    evidence = Evidence()
    for picture in pictures:
        evidence.add(picture)
    return find(evidence.plane(), [PUBLIC, *map(private, keys or (SECRET,))])


@pytest.fixture
def few_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scale is known and nothing is to be read, trying all of them takes two seconds for nothing."""
    monkeypatch.setattr(mark_search, "candidate_chips", lambda plane: [4.0])


def texture(width: int, height: int, seed: int = 0) -> Picture:
    """Soft colored clouds with fine grain: neither flat nor easy."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 120, np.float32)
    for sigma, strength in ((24, 900), (6, 120), (1.5, 12)):
        noise = random.normal(size=(height, width, 3)).astype(np.float32)
        picture += strength * cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.clip(picture, 0, 255).astype(np.uint8)


def busy(width: int, height: int) -> Picture:
    """With as much structure as hair or cloth."""
    coarse = np.random.default_rng(2).normal(128, 30, (height // 6 + 1, width // 6 + 1, 3)).astype(np.float32)
    large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large, 20, 235).astype(np.uint8)


def half_busy(side: int) -> Picture:
    """Soft clouds under railings: what is busy takes most of the mark, and coarse encoding most of that."""
    random = np.random.default_rng(2)
    clouds = 130 + 900 * cv2.GaussianBlur(random.normal(size=(side, side, 3)).astype(np.float32), (0, 0), 30)
    bars = random.normal(0, 70, (side // 10 + 1, side // 5 + 1)).astype(np.float32)
    clouds[: side // 2] += cv2.resize(bars, (side, side // 2), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.clip(clouds, 20, 235).astype(np.uint8)


def encoded(pictures: Sequence[Picture], crf: int) -> list[Picture]:
    """Through H.264 and back."""
    buffer = io.BytesIO()
    height, width = (side - side % 2 for side in pictures[0].shape[:2])
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            whole = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, "rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def peak_to_noise(one: Picture, other: Picture) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


# The code


def test_the_crc_is_that_of_ccitt() -> None:
    """Of '123456789' it is 0x29B1, as every table of this CRC says."""
    text = int.from_bytes(b"123456789", "big")
    bits = mark_code._with_crc(text, 72)[72:]
    assert int("".join(map(str, bits)), 2) == 0x29B1


def test_the_generators_have_their_free_distance() -> None:
    """No two code words are nearer than 20 (Proakis, table 8.2-3)."""
    words = [mark_code._code_word(np.array(list(f"{n:010b}"), np.uint8)) < 0 for n in range(1, 1024)]
    assert min(int(word.sum()) for word in words) == 20


@pytest.mark.parametrize("bits", [PUBLIC_BITS, PRIVATE_BITS])
def test_every_payload_comes_back_through_noise(bits: int) -> None:
    random = np.random.default_rng(bits)
    for payload in [0, (1 << bits) - 1, *(int(p) for p in random.integers(0, 1 << bits, 20))]:
        word = mark_code.encode(payload, bits)
        assert len(word) == mark_code.coded_length(bits) and set(word.tolist()) <= {1.0, -1.0}
        noisy = mark_code.decode(word + 0.9 * random.normal(size=len(word)), bits)
        assert (noisy.payload, noisy.is_intact) == (payload, True)
        clean = mark_code.decode(word, bits)
        assert clean.payload == payload and clean.score == pytest.approx(np.sqrt(len(word)), rel=1e-5)


@pytest.mark.parametrize(
    "bits, least", [(PUBLIC_BITS, LEAST_PUBLIC_SCORE), (PRIVATE_BITS, LEAST_PRIVATE_SCORE)]
)
def test_noise_is_not_believed(bits: int, least: float) -> None:
    random = np.random.default_rng(1)
    decoded = [mark_code.decode(random.normal(size=mark_code.coded_length(bits)), bits) for _ in range(300)]
    assert not any(d.is_intact for d in decoded) and max(d.score for d in decoded) < least
    assert mark_code.decode(np.zeros(mark_code.coded_length(bits)), bits).score == 0


def test_the_list_holds_the_nearest_code_words_in_order() -> None:
    """Against all words of a code that is short enough to try them all."""
    random = np.random.default_rng(5)
    soft = random.normal(size=mark_code.RATE * (9 + 6))
    words = [np.array(list(f"{n:09b}"), np.uint8) for n in range(512)]
    nearest = sorted(words, key=lambda bits: -float(soft @ mark_code._code_word(bits)))[:8]
    assert [bits.tolist() for bits in mark_code._viterbi(soft)] == [bits.tolist() for bits in nearest]


def test_a_payload_behind_a_nearer_code_word_is_read() -> None:
    random, payload = np.random.default_rng(2), 0x123456789ABC
    word = mark_code.encode(payload, PRIVATE_BITS)
    behind = []
    for _ in range(60):
        soft = word + 1.45 * random.normal(size=len(word))
        nearest = mark_code._code_word(mark_code._viterbi(soft)[0])
        if not np.array_equal(nearest, word):
            behind.append(mark_code.decode(soft, PRIVATE_BITS).payload == payload)
    assert sum(behind) >= 3


def test_a_payload_that_does_not_fit_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="16 bits cannot hold"):
        mark_code.encode(1 << 16, 16)


# The pattern


def test_a_key_means_the_same_pattern_for_ever() -> None:
    """Marks of today must be found by every later version: this must never change."""
    chips = chips_of(PUBLIC_KEY, PUBLIC_BITS)
    packed = np.packbits(chips.sign < 0).tobytes() + chips.carries.astype("<i4").tobytes()
    assert hashlib.sha256(packed).hexdigest() == GOLDEN_PUBLIC
    assert (mark_pattern.PUBLIC_PAYLOAD, TORUS) == (0x6F01, 192)


def test_chips_are_even_and_independent() -> None:
    one, other = (chips_of(key, PRIVATE_BITS) for key in (SECRET, SECRET[::-1]))
    assert abs(one.sign.mean()) < 0.02 and abs((one.sign * other.sign).mean()) < 0.02
    shares = np.bincount(one.carries[one.carries >= 0], minlength=mark_code.coded_length(PRIVATE_BITS))
    assert (one.carries < 0).mean() == pytest.approx(mark_pattern.SYNC_SHARE, abs=0.01)
    assert shares.min() > 0.5 * shares.mean()
    spectrum = np.abs(np.fft.fft2(one.sign)) ** 2
    assert spectrum.max() < 20 * spectrum.mean()  # no part of it repeats


# Marking


@pytest.mark.parametrize(
    "width, height, profile, db",
    [
        (320, 320, "standard", 45.0),  # little room for chips: what is weaker would not survive
        (289, 512, "standard", 46.5),
        (320, 320, "high assurance", 42.0),
        (289, 512, "high assurance", 42.0),
    ],
)
def test_the_strength_is_that_of_the_profile(width: int, height: int, profile: Profile, db: float) -> None:
    picture = busy(width, height)
    marked = Marker(Mark(7, SECRET, profile), picture).apply(picture)
    assert peak_to_noise(picture, marked) == pytest.approx(db, abs=0.6)
    change = marked.astype(int) - picture
    inside = (picture > 12).all(axis=2) & (picture < 243).all(axis=2)
    assert np.ptp(change[inside], axis=1).max() == 0  # only the luma changes
    assert abs(change.mean()) < 0.05


def test_flat_pictures_are_marked_less() -> None:
    """Eyes see more on a plain wall; a busy part of the same picture takes more."""
    picture = busy(400, 300)
    picture[:, :200] = 128
    change = np.abs(Marker(Mark(7, SECRET), picture).apply(picture).astype(int) - picture)
    assert change[:, 220:].mean() > 1.8 * change[:, :180].mean() > 0
    flat = np.full((300, 300, 3), 128, np.uint8)
    assert peak_to_noise(flat, Marker(Mark(7, SECRET), flat).apply(flat)) > 49


def test_black_and_white_stay_nearly_black_and_white() -> None:
    for shade in (0, 255):
        flat = np.full((256, 256, 3), shade, np.uint8)
        change = Marker(Mark(7, SECRET), flat).apply(flat).astype(int) - shade
        assert np.abs(change).max() <= 3


def test_where_nothing_moves_the_mark_stands_still() -> None:
    """Before encoding: zero variance over time 20 px and more away from what moves, marked as well as not."""
    background = texture(320, 288)
    frames = []
    for step in range(5):
        frame = background.copy()
        frame[100:160, 40 + 20 * step : 90 + 20 * step] = (200, 30, 90)
        frames.append(frame)
    marker = Marker(Mark(7, SECRET), frames[0])
    marked = np.stack([marker.apply(frame) for frame in frames]).astype(int)
    away = np.ones((288, 320), bool)
    away[100 - 20 : 160 + 20, 40 - 20 : 170 + 20] = False
    assert np.ptp(marked[:, away], axis=0).max() == 0
    assert (marked[0][away] != background[away]).mean() > 0.3


def test_marking_is_repeatable_and_leaves_its_input() -> None:
    picture = texture(256, 256)
    before = picture.copy()
    one, other = (Marker(Mark(9, SECRET), picture).apply(picture) for _ in range(2))
    assert np.array_equal(one, other) and np.array_equal(picture, before)
    assert not np.array_equal(one, Marker(Mark(10, SECRET), picture).apply(picture))
    with pytest.raises(InternalError, match="came to a clip"):
        Marker(Mark(9, SECRET), picture).apply(picture[:, :200])


def test_transparent_parts_are_left_alone() -> None:
    picture = np.dstack([texture(256, 256), np.zeros((256, 256), np.uint8)])
    picture[:, 128:, 3] = 255
    marked = Marker(Mark(9, SECRET), picture).apply(picture)
    assert np.array_equal(marked[..., 3], picture[..., 3]) and np.array_equal(
        marked[:, :128], picture[:, :128]
    )
    assert not np.array_equal(marked[:, 128:], picture[:, 128:])


def test_too_small_pictures_are_known() -> None:
    assert can_be_marked(LEAST_SIDE_PX, 1000) and not can_be_marked(LEAST_SIDE_PX - 1, 1000)
    assert (chip_px(512, 512), chip_px(1920, 1080), chip_px(200, 200)) == (512 / 96, 11.25, 3.0)


# Finding it


@pytest.mark.parametrize(
    "width, height", [(512, 512), (288, 512), (640, 360), (321, 289), (256, 256), (1280, 720)]
)
def test_both_layers_are_read_at_every_size(width: int, height: int) -> None:
    payload = width * 1_000_003 * height % (1 << PRIVATE_BITS)
    picture = texture(width, height, seed=width)
    public, own = found([Marker(Mark(payload, SECRET), picture).apply(picture)])
    assert (public.payload, own.payload) == (PUBLIC_PAYLOAD, payload)
    assert own.z > 7 and own.score >= LEAST_PRIVATE_SCORE and public.score >= LEAST_PUBLIC_SCORE


@pytest.mark.parametrize("seed", range(4))
def test_many_payloads_and_keys(seed: int) -> None:
    random = np.random.default_rng(seed)
    payload, key = int(random.integers(0, 1 << PRIVATE_BITS)), random.bytes(32)
    picture = texture(384, 320, seed=50 + seed)
    assert found([Marker(Mark(payload, key), picture).apply(picture)], key)[1].payload == payload


def smaller(picture: Picture) -> Picture:
    return np.asarray(cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA), np.uint8)


def cropped(picture: Picture) -> Picture:
    rows, columns = (round(0.05 * side) for side in picture.shape[:2])
    return np.ascontiguousarray(picture[rows:-rows, columns:-columns])


def mirrored(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[:, ::-1])


def brighter(picture: Picture) -> Picture:
    return np.asarray(np.clip(255 * (picture / 255) ** 0.8 * 0.9 + 10, 0, 255), np.uint8)


@pytest.mark.parametrize(
    "attack, crf",
    [(np.copy, 23), (np.copy, 28), (smaller, 23), (mirrored, 23), (brighter, 23), (cropped, 23)],
    ids=["crf 23", "crf 28", "three quarters", "mirrored", "brighter", "cropped by a tenth"],
)
def test_what_a_clip_goes_through(attack: Callable[[Picture], Picture], crf: int) -> None:
    """Something moves before a still ground; encoded as omokage does, then changed and encoded again."""
    ground, moving = texture(448, 448, seed=20), texture(200, 260, seed=21)
    frames = []
    for step in range(10):
        frames.append(ground.copy())
        frames[-1][120:380, 60 + 10 * step : 260 + 10 * step] = moving
    marker = Marker(Mark(0xABCDEF012345, SECRET), frames[0])
    leaving = encoded([marker.apply(frame) for frame in frames], 18)
    public, own = found(encoded([attack(frame) for frame in leaving], crf))
    assert (public.payload, own.payload) == (PUBLIC_PAYLOAD, 0xABCDEF012345)


def test_where_busy_parts_would_not_keep_a_mark_it_is_laid_more_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture, mark = half_busy(448), Mark(77, SECRET)
    marked = Marker(mark, picture).apply(picture)
    assert peak_to_noise(marked, picture) > 44.5
    assert [one.payload for one in found(encoded([marked] * 12, 28))] == [PUBLIC_PAYLOAD, 77]
    monkeypatch.setitem(video_mark._WAYS, "standard", ((45.0, 0.5, 0.0),))  # as it was before
    in_busy_parts = Marker(mark, picture).apply(picture)
    assert found(encoded([in_busy_parts] * 12, 28))[1].payload is None
    # Where it is kept, nothing changes.
    monkeypatch.undo()
    monkeypatch.setitem(video_mark._WAYS, "standard", video_mark._WAYS["standard"][:1])
    easy = texture(448, 448)
    as_before = Marker(mark, easy).apply(easy)
    monkeypatch.undo()
    np.testing.assert_array_equal(Marker(mark, easy).apply(easy), as_before)


def test_no_mark_is_stronger_than_it_has_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a weaker one survives it is taken, in flat pictures sooner; where not, the stronger one."""
    random, mark = np.random.default_rng(3), Mark(77, SECRET)
    stars = np.where(random.random((448, 448, 1)) < 0.02, 200, 3).astype(np.uint8).repeat(3, axis=2)
    wall = np.clip(random.normal(150, 1, (448, 448, 3)), 0, 255).astype(np.uint8)
    strengths = {}
    for name, picture in (("stars", stars), ("wall", wall), ("clouds", texture(448, 448))):
        strengths[name] = peak_to_noise(Marker(mark, picture).apply(picture), picture)
        with monkeypatch.context() as patch:
            patch.setitem(video_mark._WAYS, "standard", ((45.0, 0.5, 0.0),))
            strengths[name] -= peak_to_noise(Marker(mark, picture).apply(picture), picture)
    assert strengths["stars"] == pytest.approx(0, abs=0.1)
    assert strengths["clouds"] == pytest.approx(1.5, abs=0.1) and strengths["wall"] == pytest.approx(
        1.1, abs=0.15
    )


def test_a_label_and_a_mark_do_not_disturb_each_other() -> None:
    labeled = draw_label(texture(320, 320, seed=3), "AI-generated")
    marked = Marker(Mark(5, SECRET), labeled).apply(labeled)
    assert [one.payload for one in found([marked])] == [PUBLIC_PAYLOAD, 5]
    letters = (labeled > 240).all(axis=2) | (labeled < 20).all(axis=2)
    assert np.abs(marked.astype(int) - labeled)[letters].max() < 10


def test_marks_of_two_installations_are_both_read() -> None:
    """As when an avatar has learned a mark with its recording, or a clip went through two of them."""
    picture, other = texture(512, 512, seed=4), b"another secret".ljust(32, b".")
    once = Marker(Mark(1111, SECRET), picture).apply(picture)
    twice = Marker(Mark(2222, other), once).apply(once)
    public, first, second = found([twice], SECRET, other)
    assert (public.payload, first.payload, second.payload) == (PUBLIC_PAYLOAD, 1111, 2222)
    again = Marker(Mark(3333, SECRET), once).apply(once)
    assert found([again])[1].payload in (1111, 3333)


def test_nothing_is_found_where_nothing_is() -> None:
    public, own = found([texture(320, 320, seed=8)])
    assert (public.payload, own.payload, public.is_present, own.is_present) == (None, None, False, False)
    assert max(public.z, own.z) < PRESENT


@pytest.mark.usefixtures("few_scales")
def test_a_key_finds_nothing_of_another() -> None:
    picture = texture(320, 320, seed=8)
    marked = Marker(Mark(5, b"not ours".ljust(32, b".")), picture).apply(picture)
    public, own = found([marked])
    assert public.payload == PUBLIC_PAYLOAD and own.payload is None


@pytest.mark.usefixtures("few_scales")
def test_a_mark_that_cannot_be_read_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acceptance rule: the synchronisation alone makes a mark, never an id."""
    sent = Chips.modulated

    def garbled(chips: Chips, payload: int) -> NDArray[np.float32]:
        noise = np.random.default_rng(1).choice([-1, 1], chips.sign.shape)
        return np.where(chips.carries < 0, sent(chips, payload), noise).astype(np.float32)

    picture = texture(448, 448, seed=30)
    with monkeypatch.context() as patch:
        patch.setattr(Chips, "modulated", garbled)
        marked = Marker(Mark(77, SECRET), picture).apply(picture)
    for one in found([marked]):
        assert one.payload is None and one.is_present and one.z >= PRESENT


@pytest.mark.usefixtures("few_scales")
def test_a_low_score_is_not_believed_even_with_its_crc() -> None:
    picture = texture(320, 320, seed=31)
    marked = Marker(Mark(77, SECRET), picture).apply(picture)
    evidence = Evidence()
    evidence.add(marked)
    strict = [replace(PUBLIC, least_score=99.0), replace(private(SECRET), least_score=99.0)]
    assert [one.payload for one in find(evidence.plane(), strict)] == [None, None]


@pytest.mark.usefixtures("few_scales")
def test_flat_and_tiny_pictures_are_no_trouble() -> None:
    for picture in (np.zeros((128, 128, 3), np.uint8), np.full((130, 700, 3), 255, np.uint8)):
        assert [one.payload for one in found([picture])] == [None, None]
    with pytest.raises(ValueError, match="no frames"):
        Evidence().plane()


def test_a_busy_part_before_an_even_wall_is_marked_more_evenly() -> None:
    """What is flat is decided by where the busy parts are, not by what is left when the mark is laid more evenly."""
    picture, mark = np.full((512, 512, 3), 128, np.uint8), Mark(77, SECRET)
    picture[:, :180] = busy(180, 512)
    marked = Marker(mark, picture).apply(picture)
    change = np.abs(marked.astype(int) - picture).mean(axis=(0, 2))
    assert peak_to_noise(marked, picture) > 45.5
    assert change[200:].mean() > 0.4 * change[:170].mean()
