"""`accelerate launch` on one machine, out of reach of others.

    python -m vlaa_lib.loopback OPTIONS of accelerate launch

torch's store, where processes find each other and agree, asks for no password and listens on every
interface of the machine; here it listens on loopback alone, and so do gloo and NCCL.
"""

from __future__ import annotations

import os
import socket
from typing import Any

HOST = "127.0.0.1"


def main() -> None:
    """Run accelerate's launcher with a store that only this machine reaches."""
    import torch.distributed as dist
    from accelerate.commands import launch
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, static_tcp_rendezvous

    stock = dist.TCPStore

    def store(
        host_name: str, port: int, world_size: int | None = None, is_master: bool = False,
        *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        if is_master:
            listening = socket.create_server((HOST, port))
            port = listening.getsockname()[1]
            options["master_listen_fd"] = listening.detach()
        return stock(host_name, port, world_size, is_master, *args, **options)

    for module in (dist, c10d_rendezvous_backend, static_tcp_rendezvous):
        module.TCPStore = store
    if "lo" in {name for _, name in socket.if_nameindex()}:  # Linux
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    launch.main()


if __name__ == "__main__":
    main()
