"""A pool over real files: the digests of the standard library's modules, in whatever order."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import asyncipc


def digest(path: Path) -> tuple[Path, str]:
    """The SHA-256 of a file."""
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def modules() -> Iterator[Path]:
    """The files, one by one: the pool takes the next when it has room for it."""
    return Path(sysconfig.get_path("stdlib")).glob("*.py")


async def main() -> None:
    """Hash them all."""
    async with asyncipc.Pool() as pool:
        results = pool.map(digest, modules(), ordered=False)
        digests = {path: sha256 async for path, sha256 in results}
    for path in sorted(digests)[:3]:
        print(f"{digests[path]}  {path.name}")
    print(f"... {len(digests)} modules in all")
    assert digests.keys() == set(modules())
    assert all(digest(path) == (path, digests[path]) for path in sorted(digests)[:3])


if __name__ == "__main__":
    asyncipc.run(main)
