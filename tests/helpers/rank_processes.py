"""Several processes that train together over gloo, without the launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from free_ports import free_port


def run_processes(command: Sequence[str], count: int, timeout: float = 300) -> list[subprocess.CompletedProcess[str]]:
    """Run a command of Python as several processes that know of each other; one that is left at the end is killed."""
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    shared |= {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in {name for _, name in socket.if_nameindex()} else {}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        done = []
        for process in started:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return done
    finally:
        for process in started:
            process.kill()
            process.wait()
