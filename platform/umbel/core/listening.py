"""A listening socket."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """Port 0 takes any free one. Raises OSError, whose ``strerror`` is the system's reason and nothing else."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:  # Python adds the address, which whoever tells the error has told
        raise OSError(error.errno, str(error.strerror).partition(" (while ")[0]) from error
