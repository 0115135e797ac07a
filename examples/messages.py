"""Message types of your own: dataclasses, enums and exceptions cross as themselves."""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum

import asyncipc

# Explicit names, because both sides have to agree on them, and `__main__` is another module in
# each program. In a real program the types stand in a module that both sides import.


@asyncipc.message(name="shop.Size")
class Size(Enum):
    """Enums cross by name."""

    SMALL = "small"
    LARGE = "large"


@asyncipc.message(name="shop.Order")
@dataclass(frozen=True)
class Order:
    """What the parent sends."""

    item: str
    size: Size
    count: int = 1


@asyncipc.message(name="shop.Receipt")
@dataclass(frozen=True)
class Receipt:
    """What comes back, with values that JSON has no word for."""

    order: Order
    price: Decimal
    at: datetime


@asyncipc.message(name="shop.SoldOut")
class SoldOutError(Exception):
    """Exceptions of registered types are raised as themselves where the call was made."""


peer = asyncipc.Peer()


@peer.on_request(Order)
def take(order: Order) -> Receipt:
    """Called with each `Order` that comes in."""
    if order.item == "tea":
        raise SoldOutError("no tea left", order.count)
    return Receipt(order, Decimal("2.30") * order.count, datetime.now(UTC))


async def child() -> None:
    """Serve the parent."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


async def main() -> None:
    """Order coffee, then tea."""
    async with peer.spawn([sys.executable, __file__, "child"]) as shop:
        receipt = await shop.request(Order("coffee", Size.LARGE, 2))
        print(receipt)
        assert receipt.order == Order("coffee", Size.LARGE, 2)
        assert receipt.price == Decimal("4.60")
        details: tuple[object, ...] = ()
        try:
            await shop.request(Order("tea", Size.SMALL))
        except SoldOutError as error:
            details = error.args
        print("sold out:", *details)
        assert details == ("no tea left", 1)


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
