"""Writes `nhm_sched_plugin/pb` from `optimizer_agent.proto`: `make proto`.

The proto file is presented to the compiler under the path of the package that it ends in. So the generated modules
import each other by their full name, nothing needs rewriting afterwards, and the descriptor's file name clashes with
nobody's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGE = "nhm_sched_plugin/pb"
NAMES = ("optimizer_agent_pb2.py", "optimizer_agent_pb2.pyi", "optimizer_agent_pb2_grpc.py")


def generate(target: Path) -> None:
    """Write the three generated modules into the folder `target`; `RuntimeError` when the compiler refuses the file."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        includes = [f"--proto_path={PACKAGE}={HERE}", f"--proto_path={files('grpc_tools') / '_proto'}"]
        if protoc.main(["protoc", *includes, *outputs, f"{PACKAGE}/optimizer_agent.proto"]) != 0:
            raise RuntimeError(f"{HERE / 'optimizer_agent.proto'} does not compile; the compiler's message is above")
        target.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            shutil.copyfile(Path(folder, PACKAGE, name), target / name)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / PACKAGE)
