"""A script in several processes, as torchrun or a cluster starts them."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start(script, num, *args):
    """The script in `num` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num), "OMP_NUM_THREADS": "1"}
    place |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    place |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(num)}
    command = [sys.executable, str(script), *map(str, args)]
    how = {"cwd": ROOT, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "JAX_PROCESS_ID": str(rank)} for rank in range(num)]
    return [subprocess.Popen(command, env=os.environ | place | rank, **how) for rank in ranks]


def run(script, num, *args, timeout=240):
    """Exit codes, and what they wrote to stderr and stdout."""
    return finished(start(script, num, *args), timeout)


def finished(processes, timeout=240):
    """Exit codes, and what they wrote to stderr and stdout, of processes that were started."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [error + out for out, error in texts]
