"""Runs one way in this process: `python -m benchmarks.resnet8.worker SETTINGS WAY SEED FILE`, settings as JSON."""

import json
import sys
from pathlib import Path

from benchmarks.resnet8.ways import Settings, run_way

if __name__ == "__main__":
    SETTINGS, WAY, SEED, FILE = sys.argv[1:]
    Path(FILE).write_text(json.dumps(run_way(Settings(**json.loads(SETTINGS)), WAY, int(SEED))))
