"""Korean sentence embeddings from KorNLI and KorSTS: what the scripts at the root and in bin/ import."""

import os
import sys

if sys.stderr is None or not sys.stderr.isatty():  # tqdm reads it on import: a line per 30 seconds in a log file
    os.environ.setdefault("TQDM_MININTERVAL", "30")
