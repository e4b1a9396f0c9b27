#!/usr/bin/python3
"""The service's entry point: the node, unattended.

Runs the node's own interpreter, isolated (-I), whatever python3 started this script.
"""

import os
import sys
from pathlib import Path

AGENT = Path(__file__).resolve().parent
ROOTS = (AGENT.parent / "venv", AGENT.parents[1] / ".venv")  # installed; in a checkout
# The real path: an upgrade replaces the link `venv`, but a process keeps the version it started with.
PYTHON = next((root.resolve() / "bin" / "python" for root in ROOTS if (root / "bin" / "python").exists()), None)
if PYTHON is None:
    print("auto_runner.py: the node's virtual environment is missing: " + " or ".join(map(str, ROOTS)), file=sys.stderr)
    sys.exit(1)
os.execv(PYTHON, [str(PYTHON), "-I", "-m", "supervisor.daemon.main", "--unattended", *sys.argv[1:]])
