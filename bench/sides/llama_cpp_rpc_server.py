"""A server of llama.cpp's RPC backend, whose device is the CPU: a node of compare.py's RPC side.

    python llama_cpp_rpc_server.py 127.0.0.1:50052 1

Runs until it is ended, in an environment of its own, without hearth.
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp

# enum ggml_backend_dev_type
CPU = 0


def library(name: str) -> ctypes.CDLL:
    """A library of the package: libggml-rpc and the like."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    return ctypes.CDLL(str(next(folder.glob(f"*{name}.*"))))


def main() -> None:
    endpoint, threads = sys.argv[1], int(sys.argv[2])
    llama_cpp.llama_backend_init()
    find = library("ggml").ggml_backend_dev_by_type
    find.argtypes, find.restype = [ctypes.c_int], ctypes.c_void_p
    serve = library("ggml-rpc").ggml_backend_rpc_start_server
    serve.argtypes = [
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    ]
    device = ctypes.c_void_p(find(CPU))
    serve(endpoint.encode(), None, threads, 1, ctypes.byref(device))


if __name__ == "__main__":
    main()
