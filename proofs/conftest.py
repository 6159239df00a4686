"""Shared by the proofs: one thread, no network, and the helpers of `tests` within reach."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded
# what TRL and its kin would otherwise try at import and at the first training step
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1")
# the Ray that is started here and those that talk to it know each other by a word of their own; read when ray is loaded
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
# Ray makes its workers nicer by 15 and gives up those that take a minute to start: on a busy machine none would
os.environ.update(RAY_worker_niceness="0", RAY_worker_register_timeout_seconds="300")
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
