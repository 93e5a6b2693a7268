"""Of all tests in Python."""

from __future__ import annotations

import os

# Several processes run the tests, and each would have as many threads as there are cores.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
