"""How the processes that compute hold on to memory."""

__all__ = ["KEEP_MEMORY"]

# For glibc: freed memory is kept for the next step of the same size, which spares the system's
# clearing of it, some 5 % of stage 2's time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
