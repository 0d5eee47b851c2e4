"""Devices are there or an error; memory figures see what was taken."""

from __future__ import annotations

import pytest
import torch

from moetool.errors import DeviceUnavailable, UsageFault
from moetool.model import device
from moetool.model.device import MemoryWatch, available_nbytes, pick_device


def test_auto_takes_what_there_is():
    expected = "cuda" if torch.cuda.is_available() else None
    assert pick_device("auto").type == (expected or pick_device("auto").type)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error_with_exit_code_5(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceUnavailable, match="cuda is not there") as caught:
        pick_device("cuda")
    assert caught.value.exit_code == 5
    assert "--device cpu" in caught.value.hint


def test_a_second_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(DeviceUnavailable, match="cuda:1 is not there"):
        pick_device("cuda:1")


def test_mps_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable):
        pick_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "tpu:0"])
def test_an_unknown_device_is_a_usage_error(name):
    with pytest.raises(UsageFault, match="unknown device"):
        pick_device(name)


def test_available_memory_is_less_than_the_machine_has():
    assert 1 << 20 < available_nbytes(torch.device("cpu")) < 1 << 50


@pytest.mark.parametrize("kind", ["", "memory"])
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, kind):
    """The narrowest of the groups around this process; pages of files can be given up."""
    groups = device._GROUPS[kind]._replace(root=str(tmp_path))
    monkeypatch.setitem(device._GROUPS, kind, groups)
    for folder, limit in ((tmp_path, "max"), (tmp_path / "a", 5000), (tmp_path / "a/b", 9000)):
        folder.mkdir(exist_ok=True)
        (folder / groups.limit).write_text(f"{limit}\n")
        (folder / groups.taken).write_text("3000\n")
        stat = "".join(
            f"{name} {size}\n" for name, size in zip(groups.file_pages, (500, 100), strict=True)
        )
        (folder / "memory.stat").write_text(f"anon 7\n{stat}")
    inside = tmp_path / "cgroup"
    inside.write_text(f"12:{kind}:/a/b\n7:cpu:/a\n")
    monkeypatch.setattr(device, "MEMBERSHIP", inside)
    assert sorted(device._container_rooms()) == [2600, 6600]
    assert device.free_nbytes() == 2600
    monkeypatch.setattr(device, "MEMBERSHIP", tmp_path / "none")
    assert device.free_nbytes() > 1 << 20


def test_memory_that_was_taken_between_samples_is_remembered():
    watch = MemoryWatch()
    watch.sample()
    before = watch.peak(torch.device("cpu"))
    taken = torch.ones(32 << 20, dtype=torch.float32)  # 128 MiB
    watch.sample()
    del taken
    after = watch.peak(torch.device("cpu"))
    if before.anonymous is None:
        pytest.skip("this system does not tell anonymous memory")
    assert after.anonymous - before.anonymous > 100 << 20
    assert after.resident >= after.anonymous
