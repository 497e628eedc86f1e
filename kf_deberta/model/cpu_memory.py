"""Keeping freed memory in the process: a training step frees what the next one needs again.

glibc returns large blocks to the system when they are freed. The next step gets them back page by page, each page
zeroed by the kernel: for the gradient of 99.8 million embedding parameters that takes longer than AdamW's pass.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of mallopt's parameters, from malloc.h


def keep_freed_memory() -> bool:
    """Have this process keep and reuse the memory it frees; False where the C library is not glibc.

    Results stay bit for bit the same. Call it before the model is loaded; it holds until the process ends.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
