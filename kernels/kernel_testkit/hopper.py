"""Compiles Triton kernels for a Hopper GPU, with none at hand, and tells what they need of it."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# What a program may have of an SM's shared memory.
SHARED_BYTES = 227 << 10
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """A kernel's resources, and its code in the compiler's forms."""

    registers: int
    spilled_bytes: int  # of stack: where registers that do not fit go
    shared_bytes: int
    asm: Mapping[str, Any]


@dataclass(frozen=True)
class Budget:
    """What a kernel may need."""

    registers: int  # of a thread; the file of an SM holds 65,536
    shared_bytes: int = SHARED_BYTES
    spilled_bytes: int = 0

    def check(self, name: str, compiled: Compiled) -> None:
        """Raises AssertionError that names the kernel, the need and the limit."""
        for need in ("registers", "shared_bytes", "spilled_bytes"):
            needed, allowed = getattr(compiled, need), getattr(self, need)
            assert needed <= allowed, f"{name} needs {needed} {need}, its budget is {allowed}"


def compile_kernel(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], aligned: set[str], options: Mapping[str, int]
) -> Compiled:
    """`types`: Triton's names by parameter, constants left out; `aligned`: pointers and strides that 16 divides.

    A kernel that may begin before the one before it has ended is compiled so, and must wait before it touches memory.
    """
    names = kernel.arg_names
    if overlaps := "overlaps" in names:
        constants, options = {**constants, "overlaps": True}, {**options, "launch_pdl": True}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in aligned}
    source = ASTSource(kernel, signature, dict(constants), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(options))
    usage = _usage(compiled.asm["cubin"])
    if overlaps:
        before, _, _ = compiled.asm["ptx"].partition("griddepcontrol.wait")
        touches = re.findall(r"(?:ld|st|atom|red)\.global.*|cp\.async\.c[ag].*", before)
        assert len(before) < len(compiled.asm["ptx"]), f"{kernel.__name__} never waits"
        assert not touches, f"{kernel.__name__} before it waits: {touches}"
    return Compiled(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared, compiled.asm)


def _usage(cubin: bytes) -> dict[str, int]:
    """The largest of each figure over the functions of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_CUOBJDUMP, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: max(map(int, re.findall(rf"\b{name}:(\d+)", text))) for name in ("REG", "STACK", "LOCAL")}
