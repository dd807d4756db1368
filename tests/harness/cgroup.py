"""A control group of the host in which memory is limited."""

import contextlib
import os
import uuid
from pathlib import Path

from .node import wait_until


class LimitedMemory:
    """So much memory for the processes that are put into it. If `kills`, the kernel ends one that asks for more, else it is told
    `ENOMEM`, or waits."""

    def __init__(self, limit, kills):
        self.kills = kills
        v1 = Path("/sys/fs/cgroup/memory")
        self.is_v1 = (v1 / "memory.limit_in_bytes").exists()
        self.path = (v1 if self.is_v1 else Path("/sys/fs/cgroup")) / f"rouse-test-{uuid.uuid4().hex[:12]}"
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if self.is_v1 else "memory.max")).write_text(str(limit))
        if self.is_v1 and not kills:
            # Without CAP_SYS_RESOURCE no process can ask not to be chosen.
            (self.path / "memory.oom_control").write_text("1")
        # Swapping would make room without end. Not every kernel counts swap.
        with contextlib.suppress(OSError):
            if self.is_v1:
                (self.path / "memory.memsw.limit_in_bytes").write_text(str(limit))
            else:
                (self.path / "memory.swap.max").write_text("0")

    @staticmethod
    def is_possible():
        if Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
            return True
        controllers = Path("/sys/fs/cgroup/cgroup.subtree_control")
        return controllers.exists() and "memory" in controllers.read_text().split()

    def add(self, pid):
        if self.kills:
            Path(f"/proc/{pid}/oom_score_adj").write_text("0")
        (self.path / "cgroup.procs").write_text(str(pid))

    def killed(self):
        """How many processes the kernel has ended."""
        events = (self.path / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])

    def close(self):
        def is_removed():
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
            return not self.path.exists()

        wait_until(is_removed, lambda: f"nobody is in {self.path}")
