"""One thread per test process: tests run side by side, and OpenMP threads that wait for each other spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
