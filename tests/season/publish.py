"""What `record` does with a camera's staged files, without FFmpeg recording: python publish.py CONFIG CAMERA < plan

The plan is JSON: {"downs": [[start, end, cause], ...], "staged": [[path, start, end], ...]}. Files that an earlier
process left in the staging folder, because it was killed, are finished first, as `record` does at its start.
Publishing, checking, naming and the journal are the recorder's own code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import rtsp_recorder as recorder  # noqa: E402
from rhombus_logging import find_ffmpeg, load_config  # noqa: E402


def main() -> None:
    config_file, name = Path(sys.argv[1]), sys.argv[2]
    config = dict(load_config(config_file, ("cameras", "recording", "storage", "retention"), ROOT))
    camera = recorder.settle_cameras(config, {}, [name])[0]
    recorder.prepare(camera)
    finisher = recorder.Finisher(camera, find_ffmpeg("publishing"))
    plan = json.load(sys.stdin)
    for start, end, cause in plan["downs"]:
        recorder.write_down(camera, start, end, cause)
    told = {Path(path): (start, end) for path, start, end in plan["staged"]}
    waiting = [one for one in camera.own("staging").glob("*/*") if one.suffix in recorder.STAGED]
    for path in sorted({one.with_name(one.stem.removesuffix("-cut") + ".mkv") for one in waiting}):
        start, end = told.get(path, (None, None))
        finisher.finish(recorder.Job(path, start, end, found=path not in told))


if __name__ == "__main__":
    try:
        main()
    except OSError as problem:  # a full disk: the next process goes on
        sys.exit(f"{problem}")
