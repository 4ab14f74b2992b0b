"""Memory that may be taken: the machine's, within the limits of control groups of both versions."""

from __future__ import annotations

import os

import pytest

from oaplug.feed.memory import available_memory_bytes

GIB = 2**30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def machine(tmp_path):
    meminfo = f"MemTotal: {32 * GIB // 1024} kB\nMemAvailable: {20 * GIB // 1024} kB\n"
    return write(tmp_path, {"proc/meminfo": meminfo})


def group(folder, *, limit, used, inactive, version=2):
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    values = (str(limit), str(used), f"anon 1\n{names[2]} {inactive}\n")
    return {f"{folder}/{name}": text for name, text in zip((*names[:2], "memory.stat"), values, strict=True)}


def test_without_limits_it_is_what_linux_says(machine):
    assert available_memory_bytes(root=machine) == 20 * GIB


def test_the_narrowest_group_around_a_job_counts_and_its_file_cache_can_be_freed(machine):
    write(machine, {"proc/self/cgroup": "0::/slurm/job_7/step_0\n"})
    top = "sys/fs/cgroup/slurm"
    write(machine, group(top, limit="max", used=9 * GIB, inactive=0))
    write(machine, group(f"{top}/job_7", limit=8 * GIB, used=5 * GIB, inactive=GIB))
    write(machine, group(f"{top}/job_7/step_0", limit=16 * GIB, used=5 * GIB, inactive=GIB))
    assert available_memory_bytes(root=machine) == 4 * GIB


def test_a_container_sees_its_own_group_at_the_mount(machine):
    write(machine, {"proc/self/cgroup": "0::/\n"})
    write(machine, group("sys/fs/cgroup", limit=3 * GIB, used=GIB, inactive=0))
    assert available_memory_bytes(root=machine) == 2 * GIB


def test_groups_of_the_first_version_count_too(machine):
    write(machine, {"proc/self/cgroup": "5:cpu:/a\n4:memory:/a/b\n0::/\n"})
    write(machine, group("sys/fs/cgroup/memory/a", limit=6 * GIB, used=GIB, inactive=0, version=1))
    write(machine, group("sys/fs/cgroup/memory/a/b", limit=2**63, used=GIB, inactive=0, version=1))
    assert available_memory_bytes(root=machine) == 5 * GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(machine):
    write(machine, {"proc/self/cgroup": "0::/\n"})
    write(machine, group("sys/fs/cgroup", limit=GIB, used=2 * GIB, inactive=0))
    assert available_memory_bytes(root=machine) == 0


def test_a_system_that_does_not_say_what_is_available_counts_as_half_free(tmp_path):
    assert (
        available_memory_bytes(root=tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    )
