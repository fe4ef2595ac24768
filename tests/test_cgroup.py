"""What a container's cgroup says: version 1 as it was recorded in a container, version 2 in the kernel's own form."""

from __future__ import annotations

import pytest

from hzzray.engine.cgroup import Container, container

# docker run --cpus 1 --memory 300m on a kernel with version 1; the files that are read.
V1 = {
    "cpuacct/cpuacct.usage": "71416986\n",
    "cpuacct/cpuacct.stat": "user 2\nsystem 4\n",
    "cpu/cpu.cfs_quota_us": "100000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.usage_in_bytes": "2023424\n",
    "memory/memory.limit_in_bytes": "314572800\n",
    "memory/memory.stat": "cache 983040\nrss 221184\ninactive_file 122880\ntotal_cache 983040\n"
    "total_inactive_file 122880\n",
}
V2 = {
    "cgroup.controllers": "cpu io memory pids\n",
    "cpu.stat": "usage_usec 7253517\nuser_usec 4000000\nsystem_usec 3253517\nnr_periods 12\nnr_throttled 3\n"
    "throttled_usec 81233\n",
    "cpu.max": "150000 100000\n",
    "memory.current": "138379264\n",
    "memory.max": "1073741824\n",
    "memory.stat": "anon 116019200\nfile 21299200\ninactive_file 17264640\nactive_file 4034560\n",
}


@pytest.fixture
def tree(tmp_path):
    """Write a tree of files; returns its root."""

    def write(files, **changes):
        for name, text in (files | changes).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_version_1(tree):
    """Issue 11, item 37: a container's CPU, memory and limits, where psutil shows the host's."""
    found = container(tree(V1))
    assert found is not None
    assert found.user_s + found.system_s == pytest.approx(0.071416986)
    assert found.user_s == pytest.approx(0.071416986 / 3)
    assert (found.memory, found.cpus, found.memory_limit) == (2023424 - 122880, 1.0, 314572800)


def test_version_2(tree):
    """Issue 11, item 37."""
    assert container(tree(V2)) == Container(4.0, 3.253517, 138379264 - 17264640, 1.5, 2**30)


def test_no_limits(tree):
    found = container(tree(V2, **{"cpu.max": "max 100000\n", "memory.max": "max\n"}))
    assert (found.cpus, found.memory_limit) == (0.0, 0)


def test_no_limits_in_version_1(tree):
    """-1 and the largest number of whole pages say that there is none."""
    none = {"cpu/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}
    found = container(tree(V1, **none))
    assert (found.cpus, found.memory_limit) == (0.0, 0)


def test_a_machine_is_no_container(tree):
    """The root of all groups has neither memory nor limits of its own; in version 1 it is marked."""
    assert container(tree({"cgroup.controllers": "cpu memory\n", "cpu.stat": V2["cpu.stat"]})) is None


def test_a_machine_with_version_1_is_no_container(tree):
    assert container(tree(V1, **{"cpuacct/cgroup.sane_behavior": "0\n", "memory/cgroup.sane_behavior": "0\n"})) is None


@pytest.mark.parametrize("files", [V1, V2])
def test_what_can_not_be_read_is_nothing(tree, files):
    for name in files:
        for damage in ("", "nonsense\n", "a b c\n"):
            found = container(tree(files, **{name: damage}))
            assert found is None or found.memory >= 0
    assert container(tree(files) / "nowhere") is None
