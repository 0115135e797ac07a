"""A module that, where it is preloaded, has workers run on asyncio's own loop."""

import asyncio

from asyncipc import runner

runner.new_event_loop = asyncio.new_event_loop
