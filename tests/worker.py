"""One of several real gloo processes that serve the tests; started by the fixtures in conftest.

Arguments: rank, size, a folder with the rendezvous file and this process's socket.
"""

import importlib.util
import pickle
import sys
import traceback
from functools import cache
from multiprocessing.connection import Client
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist


@cache
def load(path: str) -> ModuleType:
    # By file, since pytest's importlib mode gives test modules no importable name.
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    with Client(f"{folder}/{rank}") as parent:
        while (task := pickle.loads(parent.recv_bytes())) is not None:
            path, name, arguments = task
            try:
                answer = (True, getattr(load(path), name)(*arguments))
            except Exception:
                answer = (False, traceback.format_exc())
            # Plain pickle: torch's own reducer of a Connection would pass file descriptors.
            parent.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
