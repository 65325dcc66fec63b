"""Telling whether an error says that memory ran out."""

import comfy.model_management


def out_of_memory(error: BaseException) -> bool:
    return comfy.model_management.is_oom(error) or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
