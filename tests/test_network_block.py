"""The network block of `conftest.py`: loopback and Unix sockets work, everything else raises."""

import socket

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 443)])
@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_the_world_is_out_of_reach(address, method):
    with socket.socket() as client, pytest.raises(RuntimeError, match="reaches for the network"):
        getattr(client, method)(address)


def test_this_machine_is_in_reach(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
