"""Kernels compiled for GPUs by NVRTC, which needs no driver."""

from __future__ import annotations

from cupy._core import core

from cuda_shim.emulator import unit


def no_nvrtc() -> str | None:
    """Why kernels cannot be compiled here, or None."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
        core.assemble_cupy_compiler_options(())  # looks for CUDA's headers
    except (ImportError, RuntimeError) as error:
        return f"NVRTC or CUDA's headers are missing ({str(error).splitlines()[0]})"
    return None


def cubin(sources: dict[tuple[str, str], int], arch: str, options: tuple[str, ...]) -> bytes:
    """The kernels as one binary for GPUs such as ``"sm_90"``, with CuPy's headers and options.

    For ``"compute_90"`` it is their assembly text.
    """
    from cupy_backends.cuda.libs import nvrtc

    headers = "".join(f"#include <{name}>\n" for name in core._cupy_header_list)
    program = nvrtc.createProgram(headers + unit(sources), "kernels.cu", (), ())
    given = core.assemble_cupy_compiler_options(options)
    given += ("-ftz=true", "--device-as-default-execution-space", f"-arch={arch}")
    try:
        nvrtc.compileProgram(program, given)
    except nvrtc.NVRTCError:
        raise AssertionError(nvrtc.getProgramLog(program)[:4000]) from None
    get = nvrtc.getPTX if arch.startswith("compute") else nvrtc.getCUBIN
    binary: bytes = get(program)
    return binary
