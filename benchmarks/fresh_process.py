"""Functions called in processes of their own, so that no measurement inherits another's heap.

The processes are forked from a server that has imported the libraries and computed nothing: they start within
milliseconds, and all in the same state.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PRELOADED = ["torch", "torch.utils.flop_counter", "timm", "transformers", "hf_pvt", "onnxruntime"]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, computed in a process that ends with it.

    Raises:
        RuntimeError: the process ended without a result: an error, which it has printed, or too little memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, *arguments))
    process.start()
    sender.close()  # so that an end of the process is the end of the pipe
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{function.__name__}{arguments} gave no result; its process ended with {process.exitcode}."
        ) from None
    finally:
        process.join()


def _send(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    sender.send(function(*arguments))
