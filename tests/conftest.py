"""One thread a process, set before torch is imported: tests run beside each other and on small machines."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
