"""A module that hangs when it is imported."""

import signal
import sys

sys.stderr.write("the module waits\n")
sys.stderr.flush()
signal.pause()
