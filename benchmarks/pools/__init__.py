"""The pools of the comparison, one module each; all call the same function and nothing less."""

from benchmarks.harness import Subject

__all__ = [
    "ASYNCIPC",
    "ASYNCIPC_MAP",
    "EXECUTOR",
    "EXECUTOR_MAP",
    "LOKY",
    "MULTIPROCESSING",
    "MULTIPROCESSING_MAP",
    "ONE_WORKER",
    "PEBBLE",
    "TWO_WORKERS",
    "WORKERS",
]

ASYNCIPC = Subject("asyncipc.Pool.run", "pools.asyncipc_pool")
MULTIPROCESSING = Subject("multiprocessing.Pool.apply_async", "pools.multiprocessing_pool")
EXECUTOR = Subject("ProcessPoolExecutor, awaited", "pools.executor")
PEBBLE = Subject("pebble.ProcessPool.schedule", "pools.pebble_pool", packages=("pebble",))
LOKY = Subject("loky executor.submit", "pools.loky_pool", packages=("loky",))

ONE_WORKER = (ASYNCIPC, MULTIPROCESSING, EXECUTOR, PEBBLE, LOKY)

ASYNCIPC_MAP = Subject("asyncipc.Pool.map", "pools.asyncipc_map")
MULTIPROCESSING_MAP = Subject("multiprocessing.Pool.imap", "pools.multiprocessing_map")
EXECUTOR_MAP = Subject("ProcessPoolExecutor.map", "pools.executor_map")

TWO_WORKERS = (ASYNCIPC_MAP, MULTIPROCESSING_MAP, EXECUTOR_MAP)

WORKERS = Subject("asyncipc.Pool, numpy preloaded", "pools.asyncipc_workers", packages=("numpy",))
