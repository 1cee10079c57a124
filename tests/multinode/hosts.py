"""Two hosts on one machine. Each has its own namespaces (network, processes, mounts, host name) and an sshd. A veth
link joins them.

The process namespaces are necessary: when the deepspeed launcher is asked to stop, it runs `pkill -f` with its own
command line on every host. Without them, this would kill other jobs of the machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

PROGRAMS = ("ip", "unshare", "nsenter", "mount", "pdsh", "hostname", "ssh-keygen", "/usr/sbin/sshd")

_MOUNT_POINT = Path("/root/.ssh")
_SSH_CONFIG = """Host *
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
"""
_SSHD_CONFIG = """Port 22
ListenAddress {address}
HostKey {key}
PidFile {folder}/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PrintMotd no
"""
# The first process of a host. It prepares the mounts, reports that it is ready, and reaps orphaned processes.
_INIT = """set -e
mount --make-rprivate /
mkdir -p /run/sshd
mount --bind {lab}/ssh /root/.ssh
mount --bind {lab}/hosts /etc/hosts
hostname {name}
touch {folder}/ready
while :; do sleep 3600 & wait $!; done
"""


def why_not() -> str | None:
    """Why this machine cannot have two hosts, or None."""
    if os.geteuid() != 0:
        return "two hosts need root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"two hosts need {', '.join(missing)} (Debian: iproute2 openssh-server pdsh hostname util-linux)"
    probe = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "-f", "true"], capture_output=True, text=True, check=False
    )
    return None if probe.returncode == 0 else f"namespaces are not allowed here: {probe.stderr.strip()}"


class TwoHosts:
    """A context manager with the two hosts. At its end, all their processes are killed.

    Args:
        lab: a folder for keys and logs.
    """

    def __init__(self, lab: Path) -> None:
        self._lab = lab
        tag = secrets.token_hex(2)  # several test runs may share the machine
        network = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
        self.names = [f"bnb{tag}a", f"bnb{tag}b"]
        self.addresses = [f"{network}.1", f"{network}.2"]
        self.hostfile = lab / "hostfile"
        self._made_mount_point = False
        self._inits: list[int] = []
        self._unshares: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> TwoHosts:
        try:
            self._prepare_ssh()
            self._join()
            for host in range(2):
                self._boot(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self._inits:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # this ends all processes of its namespace
        for process in self._unshares:
            process.kill()
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)  # also removes its link
        if self._made_mount_point:
            with contextlib.suppress(OSError):
                _MOUNT_POINT.rmdir()

    def command(self, host: int, command: list[str]) -> list[str]:
        """The command line that runs a command on a host in the current directory."""
        return ["nsenter", "-t", str(self._inits[host]), "-n", "-m", "-u", "-p", f"--wd={os.getcwd()}", "--", *command]

    def run(self, host: int, *command: str) -> str:
        return subprocess.run(self.command(host, list(command)), capture_output=True, text=True, check=True).stdout

    def cut(self) -> None:
        """Pull the cable of the second host."""
        subprocess.run(["ip", "-n", self.names[1], "link", "set", "eth0", "down"], check=True)

    def _prepare_ssh(self) -> None:
        ssh = self._lab / "ssh"
        ssh.mkdir(mode=0o700)
        # This is only the mount point. Existing files in it are not changed.
        self._made_mount_point = not _MOUNT_POINT.exists()
        _MOUNT_POINT.mkdir(mode=0o700, exist_ok=True)
        _make_key(ssh / "id_ed25519")
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        (ssh / "config").write_text(_SSH_CONFIG)
        lines = [f"{address} {name}" for address, name in zip(self.addresses, self.names, strict=True)]
        (self._lab / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))

    def _join(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
        _ip(
            "link",
            "add",
            "eth0",
            "netns",
            self.names[0],
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.names[1],
        )
        for name, address in zip(self.names, self.addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def _boot(self, host: int) -> None:
        name = self.names[host]
        folder = self._lab / name
        folder.mkdir()
        init = _INIT.format(lab=self._lab, name=name, folder=folder)
        command = ["ip", "netns", "exec", name, "unshare", "-m", "-p", "-u", "-f", "--mount-proc", "bash", "-c", init]
        with open(folder / "init.log", "wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._unshares.append(process)
        deadline = time.monotonic() + 30
        while not (folder / "ready").exists():
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, (folder / "init.log").read_text()
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self._inits.append(int(children[0]))
        _make_key(folder / "hostkey")
        config = _SSHD_CONFIG.format(address=self.addresses[host], key=folder / "hostkey", folder=folder)
        (folder / "sshd_config").write_text(config)
        self.run(host, "/usr/sbin/sshd", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log"))


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
