"""Run one of our programs at another time: python at.py EPOCH_SEC PROGRAM [ARGUMENTS]

The program is the real one in a process of its own; only `time.time` is moved, and goes on from there at its pace.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    offset_sec = float(sys.argv[1]) - time.time()
    real_time = time.time
    time.time = lambda: real_time() + offset_sec
    program = Path(sys.argv[2]).resolve()
    sys.argv = [str(program), *sys.argv[3:]]
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
