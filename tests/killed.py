"""A run in a process of its own that is killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

START = """
import sys
sys.path[:0] = {path}
import conftest, hosts
if "{host}" == "pyro":
    import torch
    torch.set_default_dtype(torch.float64)
host, folder = hosts.get("{host}"), sys.argv[1]
"""


def killed(host, code, folder):
    """Run code that writes checkpoints to `folder` in a host until there are two, and kill it; the newest step."""
    script = folder.with_suffix(".py")
    script.write_text(START.format(path=[os.path.dirname(__file__), *sys.path], host=host.name) + code)
    process = subprocess.Popen([sys.executable, script, folder])
    try:
        while not folder.exists() or len(list(folder.glob("step-*[zt]"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(np.random.default_rng().uniform(0, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return max(int(path.stem.split("-")[1]) for path in folder.glob("step-*[zt]"))
