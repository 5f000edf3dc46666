"""A Slurm of one host, in a folder of its own, for as long as a test needs it."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "apps"))
import harness  # noqa: E402

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel"]


def why_not():
    """Why there can be no cluster here; None when there can be one."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root only"
    for program in PROGRAMS:
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin"):
            return f"{program} is not installed (tools/install_packages test)"
    return None


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """munged, slurmctld and one slurmd, whose node n1 says that it has 8 cores. Close it when done."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.daemons = []
        for name in ("state", "spool.n1", "tmp.n1"):
            (self.folder / name).mkdir(parents=True)
        self.environment = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin",
                                SLURM_CONF=str(self.folder / "slurm.conf"))
        # A Slurm around this test has no say in it.
        for name in [name for name in self.environment if re.match("SLURM_(?!CONF$)|SBATCH_|SRUN_|SQUEUE_", name)]:
            del self.environment[name]
        self.environment.update({name: value for name, value in harness.environment().items()
                                 if name.startswith(("OMPI_", "ASAN_"))})
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        sock = self.folder / "munge.socket"
        self.daemon("munged", "--force", "--foreground", f"--key-file={key}", f"--socket={sock}",
                    f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                    f"--seed-file={self.folder}/munged.seed")
        harness.wait_for(sock.exists, "munged")
        host = socket.gethostname().split(".")[0]
        controller, node = free_ports(2)
        (self.folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={sock}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdSpoolDir={self.folder}/spool.%n
TmpFS={self.folder}/tmp.%n
StateSaveLocation={self.folder}/state
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n1 Default=YES MaxTime=INFINITE State=UP
""")
        self.daemon("slurmctld", "-D", "-c")
        self.daemon("slurmd", "-D", "-N", "n1")
        harness.wait_for(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T", check=False).stdout, "an idle node")

    def daemon(self, *words):
        log = open(self.folder / f"{words[0]}.out", "wb")
        with log:
            self.daemons.append(subprocess.Popen(words, env=self.environment, cwd=self.folder,
                                                 stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT))

    def close(self):
        """Ends all jobs, then the daemons, each by its pid."""
        if len(self.daemons) == 3 and all(daemon.poll() is None for daemon in self.daemons):
            self.call("scancel", "--signal=KILL", "--full", "--user=root", check=False)
            self.call("scancel", "--user=root", check=False)
            with contextlib.suppress(AssertionError):
                harness.wait_for(lambda: not self.call("squeue", "-h", check=False).stdout, "the jobs to end", 20)
        for daemon in reversed(self.daemons):
            if daemon.poll() is None:
                daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, job=None):
        """Pids of what runs under this cluster, or under one of its jobs; without the daemons."""
        mine = f"SLURM_CONF={self.folder}/slurm.conf"
        daemons = [os.getpid(), *(daemon.pid for daemon in self.daemons)]
        found = []
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            with contextlib.suppress(OSError):
                words = pathlib.Path("/proc", str(pid), "environ").read_text(errors="replace").split("\0")
                title = pathlib.Path("/proc", str(pid), "cmdline").read_text(errors="replace")
                if mine in words and pid not in daemons and harness.alive(pid) and (
                        job is None or f"SLURM_JOB_ID={job}" in words or title.startswith(f"slurmstepd: [{job}.")):
                    found.append(pid)
        return found

    def logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}"
                         for path in sorted(self.folder.glob("slurm*.out")))

    def call(self, *words, check=True, **changes):
        done = subprocess.run([str(word) for word in words], env={**self.environment, **changes}, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              errors="replace", timeout=harness.LIMIT)
        if check and done.returncode != 0:
            raise AssertionError(f"{words[0]}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def job(self, number):
        """What scontrol says of a job: JobState, Restarts, ExitCode..."""
        said = self.call("scontrol", "show", "job", "--oneliner", number).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", said))
