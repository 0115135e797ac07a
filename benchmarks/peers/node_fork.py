"""Node.js: a parent that forks a child and sends it messages over their IPC channel."""

import os
import shutil
from pathlib import Path


def client(path: str) -> None:
    """Become the parent, which takes the same commands and forks its child; no path is used."""
    node = shutil.which("node")
    assert node is not None
    os.execv(node, [node, str(Path(__file__).with_name("node_parent.js"))])
