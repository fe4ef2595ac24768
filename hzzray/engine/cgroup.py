"""What a container uses, and may use at the most, as the kernel's control groups tell it: version 1 and version 2.

Files and units are those of the kernel's documentation (``admin-guide/cgroup-v1``, ``admin-guide/cgroup-v2``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")

# Version 1 says "no limit" by a number that is as good as none [bytes].
_V1_NONE = 2**62


@dataclass(frozen=True, slots=True)
class Container:
    """A container's account since it began.

    Attributes
    ----------
    user_s, system_s
        Seconds of CPU of all its processes, those that have ended included.
    memory
        Bytes in use, without files' pages that can be dropped: what ``docker stats`` and ``kubectl top`` show.
    cpus, memory_limit
        Cores and bytes that it may have; 0 where there is no limit.
    """

    user_s: float
    system_s: float
    memory: int
    cpus: float
    memory_limit: int


def container(root: Path = ROOT) -> Container | None:
    """Read the account of the container that this process is in; None where it is in none, or nothing can be read.

    A container sees its own group where a machine sees the root of all groups, which lacks what is asked for here.
    """
    try:
        if (root / "memory.current").exists():
            return _version_2(root)
        if (root / "cpuacct").is_dir() and not (root / "cpuacct" / "cgroup.sane_behavior").exists():
            return _version_1(root)
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return None


def _version_2(group: Path) -> Container:
    cpu, memory = _table(group / "cpu.stat"), _table(group / "memory.stat")
    quota, period = (group / "cpu.max").read_text().split() if (group / "cpu.max").exists() else ("max", "1")
    limit = (group / "memory.max").read_text().strip()
    return Container(
        user_s=cpu["user_usec"] / 1e6,
        system_s=cpu["system_usec"] / 1e6,
        memory=max(0, _number(group / "memory.current") - memory.get("inactive_file", 0)),
        cpus=0.0 if quota == "max" else int(quota) / int(period),
        memory_limit=0 if limit == "max" else int(limit),
    )


def _version_1(root: Path) -> Container:
    # The sum is exact; its parts are counted in ticks of the clock.
    total_s = _number(root / "cpuacct" / "cpuacct.usage") / 1e9
    ticks = _table(root / "cpuacct" / "cpuacct.stat")
    user_s = total_s * ticks["user"] / max(1, ticks["user"] + ticks["system"])
    memory = _table(root / "memory" / "memory.stat")
    quota = _number(root / "cpu" / "cpu.cfs_quota_us")
    limit = _number(root / "memory" / "memory.limit_in_bytes")
    return Container(
        user_s=user_s,
        system_s=total_s - user_s,
        memory=max(0, _number(root / "memory" / "memory.usage_in_bytes") - memory.get("total_inactive_file", 0)),
        cpus=quota / _number(root / "cpu" / "cpu.cfs_period_us") if quota > 0 else 0.0,
        memory_limit=limit if limit < _V1_NONE else 0,
    )


def _number(path: Path) -> int:
    return int(path.read_text())


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
