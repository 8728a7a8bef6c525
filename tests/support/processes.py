"""Several processes of one test."""

import multiprocessing
import os
import socket
import subprocess
import sys

import torch.multiprocessing


def run_ranks(function, *arguments, count=2):
    """`function(rank, *arguments)` in `count` processes; what one of them raises is raised here.

    They are forked from a server that has imported torch and ser once. They cannot be forked from
    here: autograd refuses to work in a process whose parent has used it.
    """
    modules = ["sercli.objective", "sercli.engine.trainer", "sercli.data.loading"]
    multiprocessing.set_forkserver_preload(modules)
    torch.multiprocessing.start_processes(
        function, arguments, nprocs=count, start_method="forkserver"
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def left_zombie():
    """A process that has ended, and whose status nobody has asked for yet."""
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process
