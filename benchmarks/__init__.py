"""Speed: what a real server process does, measured from outside by a load generator in its own process.

`python -m benchmarks` prints a table and may write JSON; `benchmarks/README.md` says what is timed and how.
"""

import os

# ONNX Runtime's wheels report usage over the network unless told otherwise before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A plain environment for the processes under test: byte code is kept, as it is where Eddy is installed.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
