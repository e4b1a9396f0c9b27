#!/usr/bin/python3
"""Is the GPU free (R10)? Exit 0 = SAFE TO RUN, 1 = DO NOT RUN.

A thin door: runs the node's own interpreter, isolated (-I), whatever python3 opened it.
"""

import os
import sys
from pathlib import Path

AGENT = Path(__file__).resolve().parent
ROOTS = (AGENT.parent / "venv", AGENT.parents[1] / ".venv")  # installed; in a checkout
# By its real path: an upgrade puts another one in place of `venv`, and a process keeps to the one it began with.
PYTHON = next((root.resolve() / "bin" / "python" for root in ROOTS if (root / "bin" / "python").exists()), None)
if PYTHON is None:
    print("DO NOT RUN: the node's virtual environment is missing: " + " or ".join(map(str, ROOTS)), file=sys.stderr)
    sys.exit(1)
os.execv(PYTHON, [str(PYTHON), "-I", "-m", "supervisor.tools.doctor.one_look", "gpu", *sys.argv[1:]])
