"""Ports of the stack's services: free, different, and none that the kernel gives to outgoing connections."""

import socket
from pathlib import Path

import pytest

from flows.stack import ports
from flows.stack.processes import StackError


def test_no_port_is_one_that_an_outgoing_connection_may_take() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = ports.free_ports(500)
    assert len(set(found)) == 500
    assert all(10000 <= port < first or last < port < 65536 for port in found)
    with socket.create_server((ports.HOST, found[0])), socket.create_connection((ports.HOST, found[0])) as client:
        assert client.getsockname()[1] not in found  # what the range is about


def test_a_port_that_is_in_use_is_not_given() -> None:
    below, taken, above = sorted(ports.free_ports(3))
    spoken_for = {*range(10000, 65536)} - {below, taken, above}
    with socket.create_server((ports.HOST, taken)):
        assert not ports.is_free(taken)
        assert sorted(ports.free_ports(2, spoken_for)) == [below, above]
        with pytest.raises(StackError, match=r"3 free ports are needed on .*, there are 2"):
            ports.free_ports(3, spoken_for)


@pytest.mark.parametrize("text", [None, "", "x y"])
def test_without_a_readable_range_linuxs_own_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
    if text is not None:
        (tmp_path / "range").write_text(text)
    assert all(port < 32768 or port > 60999 for port in ports.free_ports(500))


def test_a_range_that_leaves_nothing_is_not_avoided() -> None:
    assert len(set(ports.free_ports(20, ephemeral=(1024, 65535)))) == 20
