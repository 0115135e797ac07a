"""numpy in a pool: imported once for all workers; the bytes of arrays travel beside the pickles."""

import sys

import asyncipc

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError:
    print("numpy is not installed; nothing is shown")
    sys.exit(0)


def spectrum(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The strength of each frequency."""
    return np.abs(np.fft.rfft(samples))


async def main() -> None:
    """Find the tones in four signals."""
    rate = 65_536
    seconds = np.arange(rate) / rate
    tones = [440, 880, 1_760, 3_520]
    signals = [np.sin(2 * np.pi * tone * seconds) for tone in tones]
    async with asyncipc.Pool(workers=2, preload=["numpy"]) as pool:
        found = [int(result.argmax()) async for result in pool.map(spectrum, signals)]
    print(f"tones at {found} Hz")
    assert found == tones


if __name__ == "__main__":
    asyncipc.run(main)
