"""A quiet worker process of Beam on this machine, which ends with the command that started it."""

import contextlib
import logging
import os
import sys
import threading
import time

PARENT = 'RF_JAX_PREPARE'  # variable with the process id of the command
_LOOK = 1.0  # seconds


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _main() -> None:
    # First of all: it may be gone before what follows is imported.
    threading.Thread(target=_end_with, args=[int(os.environ[PARENT])], daemon=True).start()
    # With a handler there, Beam adds none that prints to stderr beside the log of the command.
    logging.getLogger().addHandler(logging.NullHandler())
    import grpc
    from apache_beam.runners.worker import sdk_worker_main

    show = threading.excepthook

    def hook(arguments) -> None:
        if not isinstance(arguments.exc_value, grpc.RpcError):  # the command has gone
            show(arguments)

    threading.excepthook = hook
    with contextlib.suppress(grpc.RpcError):
        sdk_worker_main.main(sys.argv)


if __name__ == '__main__':
    _main()
