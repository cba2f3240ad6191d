"""A Slurm of one node on this machine, for tests: munged, slurmctld and slurmd with their own folder and ports."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")
_CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={port_of_node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def missing() -> str:
    """The reason why no Slurm can be started here; empty if there is none."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"needs Slurm (apt-get install slurm-wlm): {', '.join(absent)} not found"
    return "" if os.geteuid() == 0 else "needs root, to start Slurm"


class OneNode:
    """Slurm while the `with` block lasts; `environment` is what its clients need.

    Args:
        folder: an empty folder; its path must be short, since it holds a socket.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "OneNode":
        folder, host = self.folder, socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        ports = _free_ports(2)
        text = _CONF.format(host=host, folder=folder, port=ports[0], port_of_node=ports[1], cpus=os.cpu_count() or 1)
        (folder / "slurm.conf").write_text(text)
        own = [f"--{name}={folder}/munge.{end}" for name, end in (("socket", "socket"), ("key-file", "key"))]
        own += [f"--{name}={folder}/munge.{end}" for name, end in (("pid-file", "pid"), ("log-file", "log"))]
        self._start("munged", "--foreground", "--force", f"--seed-file={folder}/munge.seed", *own)
        _wait(lambda: (folder / "munge.socket").exists(), 20, "munged")
        self._start("slurmctld", "-D", "-L", str(folder / "slurmctld.log"))
        self._start("slurmd", "-D", "-L", str(folder / "slurmd.log"))
        try:
            _wait(self._idle, 60, "the node")
        except TimeoutError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, program: str, *words: str) -> None:
        found = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin")
        assert found is not None  # `missing`
        output: Any = (self.folder / f"{program}.out").open("wb")
        self._running.append(
            subprocess.Popen([found, *words], env={**os.environ, **self.environment}, stdout=output, stderr=output)
        )

    def _idle(self) -> bool:
        words = ["sinfo", "-h", "-o", "%t"]
        answer = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        return answer.stdout.strip().startswith(("idle", "mix", "alloc"))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(condition: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} was not ready in {seconds:g} s")
        time.sleep(0.2)
