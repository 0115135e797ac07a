"""The handler registry: registering, the order in which handlers are asked, taking off."""

import contextlib
import enum
import functools
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, assert_type, cast
from weakref import ref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asyncipc.errors import InvalidParams
from asyncipc.session.context import Call, CallOwner
from asyncipc.session.handler import Handler
from asyncipc.session.handlers import HandlerChain, HandlerProvider, Handlers
from asyncipc.wire.types import message


@message(name="test_handlers.Task")
@dataclass
class Task:
    action: str


@message(name="test_handlers.UrgentTask")
@dataclass
class UrgentTask(Task):
    deadline: float = 0.0


@message(name="test_handlers.Level")
class Level(enum.Enum):
    LOW = 1


class Unregistered:
    pass


def make_call(method: str = "method") -> Call:
    return Call(cast("CallOwner", None), 2, method, None, {})


def chain_of(registry: Handlers) -> HandlerChain:
    return HandlerChain(Handlers(), registry)


def functions(handlers: tuple[Handler, ...]) -> list[Callable[..., Any]]:
    return [handler.function for handler in handlers]


def one() -> None: ...
def two() -> None: ...
def three() -> None: ...
def four() -> None: ...


# -- decorators --------------------------------------------------------------------------------


def test_a_bare_decorator_takes_the_name_of_the_function() -> None:
    registry = Handlers()

    @registry.on_request
    def add(a: int, b: int) -> int:
        return a + b

    @registry.on_request()
    def subtract(a: int, b: int) -> int:
        return a - b

    @registry.on_request(thread=True)
    def multiply(a: int, b: int) -> int:
        return a * b

    for function in (add, subtract, multiply):
        [handler] = chain_of(registry).for_request(function.__name__)
        assert handler.function is function
        assert handler.invoke([3, 2], make_call()) == function(3, 2)
        assert handler.thread is (function is multiply)
        assert handler.is_inline is (function is not multiply)


def test_functions_come_back_unchanged_and_typed() -> None:
    registry = Handlers()

    @registry.on_request
    def bare(a: int) -> str:
        return str(a)

    @registry.on_request("named")
    async def named(a: int) -> str:
        return str(a)

    @registry.on_notification(Task, thread=True)
    def by_type(task: Task) -> str:
        return task.action

    assert_type(bare(1), str)
    assert inspect.isfunction(bare)
    assert inspect.iscoroutinefunction(named)
    assert by_type(Task("x")) == "x"


def test_requests_and_notifications_are_apart() -> None:
    registry = Handlers()
    registry.on_request("a")(one)
    registry.on_notification("a")(two)
    chain = chain_of(registry)
    assert functions(chain.for_request("a")) == [one]
    assert functions(chain.for_notification("a")) == [two]
    assert chain.for_request("b") == chain.for_notification("b") == ()


def test_by_message_type() -> None:
    registry = Handlers()

    @registry.on_request(Task)
    def run(task: Task, call: Call) -> Any:
        return task, call

    [handler] = chain_of(registry).for_request("test_handlers.Task")
    task, call = Task("resize"), make_call()
    assert handler.invoke([task], call)[0] is task
    assert handler.invoke([task], call)[1] is call
    assert handler.invoke([{"action": "resize"}], call)[0] == task
    urgent = UrgentTask("now")
    assert handler.invoke([urgent], call)[0] is urgent


def test_by_message_type_without_annotation() -> None:
    registry = Handlers()
    registry.on_request(Task)(lambda task: task)
    [handler] = chain_of(registry).for_request("test_handlers.Task")
    task = Task("resize")
    assert handler.invoke([task], make_call()) is task
    with pytest.raises(InvalidParams, match="parameter 'task': expected Task, got int"):
        handler.invoke([5], make_call())


@pytest.mark.parametrize(
    ("method", "function", "expected"),
    [
        (Task, lambda: None, "has: none"),
        (Task, lambda a, b: None, "has: 'a', 'b'"),
        (Task, lambda *tasks: None, "has: 'tasks'"),
        (Task, lambda *, task: None, "has: 'task'"),
        (Unregistered, lambda task: None, "Unregistered is no message type"),
        (Level, lambda level: None, "Level is no message type"),
        (5, lambda: None, "or, bare, the function, not 5"),
        (None, lambda: None, "has no name of its own; give one: on_request('name')"),
        (None, functools.partial(one), "has no name of its own"),
        ("x", "not a function", "cannot handle 'x': it cannot be called"),
    ],
)
def test_what_cannot_be_registered(method: Any, function: Any, expected: str) -> None:
    registry = Handlers()
    with pytest.raises(TypeError) as caught:
        registry.on_request(method)(function)
    assert expected in str(caught.value)
    assert chain_of(registry).for_request("*") == ()


def test_the_annotation_must_agree_with_the_message_type() -> None:
    def wrong(task: UrgentTask) -> None: ...
    def wider(task: Task) -> None: ...

    registry = Handlers()
    with pytest.raises(TypeError, match="'task' is annotated UrgentTask, but gets Task objects"):
        registry.on_request(Task)(wrong)
    registry.on_request(UrgentTask)(wider)


# -- kinds of functions ------------------------------------------------------------------------


class AsyncCallable:
    async def __call__(self, n: int) -> int:
        return n

    async def method(self, n: int) -> int:
        return n


async def plain_async(n: int) -> int:
    return n


@functools.wraps(plain_async)
def wrapped_async(*args: Any, **kwargs: Any) -> Any:
    return plain_async(*args, **kwargs)


@functools.wraps(plain_async)
def answers_for_async(*args: Any, **kwargs: Any) -> Any:
    return args[0]


@pytest.mark.parametrize(
    "function",
    [
        plain_async,
        AsyncCallable(),
        AsyncCallable().method,
        functools.partial(plain_async),
        functools.partial(AsyncCallable()),
        wrapped_async,
        answers_for_async,
    ],
)
async def test_async_functions_of_all_kinds(function: Any) -> None:
    handler = Handler("x", function)
    assert handler.is_async
    assert not handler.is_inline
    assert await handler.invoke([3], make_call()) == 3
    with pytest.raises(InvalidParams, match="expected int, got str"):
        await handler.invoke(["3"], make_call())


@pytest.mark.parametrize("function", [one, AsyncCallable, functools.partial(one), len, lambda: 1])
def test_plain_functions_run_inline(function: Any) -> None:
    handler = Handler("x", function)
    assert handler.is_inline
    assert not handler.is_async


class Generates:
    def __call__(self) -> Iterator[int]:
        yield 1

    async def items(self) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize(
    "function", [Generates(), Generates().items, functools.partial(Generates().items)]
)
def test_generators_give_items_of_requests_alone(function: Any) -> None:
    handler = Handler("x", function)
    assert handler.is_generator
    assert not handler.is_inline
    with pytest.raises(TypeError, match="cannot handle 'x': it is a generator"):
        Handlers().on_notification("x")(function)

    class Provider:
        def __handlers__(self) -> Any:
            yield "notification", "x", function, {}

    handlers = Handlers()
    with pytest.raises(TypeError, match="cannot handle 'x': it is a generator"):
        handlers.register(Provider())
    assert not handlers.notifications.handlers


def test_an_async_generator_in_a_thread_is_refused() -> None:
    with pytest.raises(TypeError, match="thread=True is for plain functions"):
        Handlers().on_request("x", thread=True)(Generates().items)


@pytest.mark.parametrize("function", [plain_async, AsyncCallable()])
def test_an_async_function_in_a_thread_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="thread=True is for plain functions"):
        Handlers().on_request("x", thread=True)(function)


# -- the order of asking -----------------------------------------------------------------------


def test_the_newest_is_asked_first_then_the_peers_then_those_of_any_method() -> None:
    session, peer = Handlers(), Handlers()
    chain = HandlerChain(session, peer)
    for registry, method, function in [
        (peer, "*", one),
        (session, "*", two),
        (peer, "a", three),
        (peer, "a", four),
        (session, "a", two),
        (session, "a", one),
    ]:
        registry.on_request(method)(function)
    assert functions(chain.for_request("a")) == [one, two, four, three, two, one]
    assert functions(chain.for_request("unknown")) == [two, one]
    assert functions(chain.for_request("*")) == [two, one]


def test_registering_works_while_sessions_are_open() -> None:
    peer = Handlers()
    first, second = Handlers(), Handlers()
    chains = [HandlerChain(first, peer), HandlerChain(second, peer)]
    assert [chain.for_request("a") for chain in chains] == [(), ()]
    peer.on_request("a")(one)
    assert [functions(chain.for_request("a")) for chain in chains] == [[one], [one]]
    first.on_request("a")(two)
    assert [functions(chain.for_request("a")) for chain in chains] == [[two, one], [one]]
    peer.on_request("*")(three)
    peer.remove(one)
    assert [functions(chain.for_request("a")) for chain in chains] == [[two, three], [three]]
    first.remove("a")
    assert [functions(chain.for_request("a")) for chain in chains] == [[three], [three]]


def test_sessions_without_handlers_share_what_their_peer_knows() -> None:
    peer = Handlers()
    for number in range(100):
        peer.on_request(f"method{number}")(one)
    assert peer.chain() is peer.chain()
    assert functions(peer.chain().for_request("method7")) == [one]


def test_a_registry_holds_no_chain_that_nobody_uses_any_longer() -> None:
    peer = Handlers()
    chain = HandlerChain(Handlers(), peer)
    lookup = ref(chain.for_request.__self__)  # type: ignore[attr-defined]
    peer.on_request("a")(one)
    del chain
    gc.collect()
    assert lookup() is None
    peer.on_request("b")(one)


class RegistryMachine(RuleBasedStateMachine):
    """Registries change in any order; the chain always says what a plain list would."""

    METHODS = ("a", "b", "*")

    def __init__(self) -> None:
        super().__init__()
        self.registries = [Handlers(), Handlers()]
        self.chain = HandlerChain(*self.registries)
        self.model: list[list[tuple[str, Callable[..., Any]]]] = [[], []]

    @rule(
        near=st.sampled_from([0, 1]),
        method=st.sampled_from(METHODS),
        function=st.sampled_from([one, two, three]),
    )
    def register(self, near: int, method: str, function: Callable[..., Any]) -> None:
        self.registries[near].on_request(method)(function)
        self.model[near].insert(0, (method, function))

    @rule(near=st.sampled_from([0, 1]), what=st.sampled_from([*METHODS, one, two, three]))
    def remove(self, near: int, what: Any) -> None:
        kept = [entry for entry in self.model[near] if what not in entry]
        found = len(kept) < len(self.model[near])
        with contextlib.nullcontext() if found else pytest.raises(LookupError):
            self.registries[near].remove(what)
        self.model[near] = kept

    @invariant()
    def the_chain_agrees(self) -> None:
        entries = self.model[0] + self.model[1]
        last = [function for known, function in entries if known == "*"]
        for method in (*self.METHODS, "unknown"):
            named = [function for known, function in entries if known == method != "*"]
            assert functions(self.chain.for_request(method)) == named + last
        assert self.chain.for_notification("a") == ()


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=50, stateful_step_count=20)


# -- taking off --------------------------------------------------------------------------------


class Provider:
    """Brings handlers of both kinds along."""

    def __init__(self, *more: Any) -> None:
        self.more = more

    def add(self, a: int, b: int) -> int:
        return a + b

    def log(self, text: str) -> str:
        return text

    def run(self, task: Task) -> Task:
        return task

    def __handlers__(self) -> Iterator[Any]:
        yield "request", "add", self.add, {}
        yield "notification", "log", self.log, {"thread": True}
        yield "request", Task, self.run, {}
        yield from self.more


def test_each_can_be_taken_off() -> None:
    registry = Handlers()
    chain = chain_of(registry)
    registry.on_request("a")(one)
    registry.on_request("b")(one)
    registry.on_request("a")(two)
    registry.on_notification("a")(one)
    registry.on_request(Task)(lambda task: None)
    registry.remove(one)
    assert functions(chain.for_request("a")) == [two]
    assert chain.for_request("b") == chain.for_notification("a") == ()
    registry.remove(Task)
    assert chain.for_request("test_handlers.Task") == ()
    registry.remove("a")
    assert chain.for_request("a") == ()


def test_a_bound_method_can_be_taken_off() -> None:
    registry, provider = Handlers(), Provider()
    registry.on_request("add")(provider.add)
    with pytest.raises(LookupError):
        registry.remove(Provider().add)
    registry.remove(provider.add)
    assert chain_of(registry).for_request("add") == ()


@pytest.mark.parametrize("target", ["a", one, Task, Unregistered, None, Provider()])
def test_taking_off_what_is_not_there_says_so(target: Any) -> None:
    registry = Handlers()
    registry.on_request("b")(two)
    with pytest.raises(LookupError, match="no handler is registered by"):
        registry.remove(target)
    assert functions(chain_of(registry).for_request("b")) == [two]


def test_a_provider_brings_its_handlers_and_takes_them_along() -> None:
    registry, provider = Handlers(), Provider()
    chain = chain_of(registry)
    assert isinstance(provider, HandlerProvider)
    registry.on_request("add")(one)
    registry.register(provider)
    assert chain.for_request("add")[0].invoke([1, 2], make_call()) == 3
    assert chain.for_notification("log")[0].thread
    assert chain.for_request("test_handlers.Task")[0].invoke([Task("x")], make_call()) == Task("x")
    registry.remove(provider)
    assert functions(chain.for_request("add")) == [one]
    assert chain.for_notification("log") == chain.for_request("test_handlers.Task") == ()


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (Unregistered(), "__handlers__"),
        (Provider(("reply", "x", one, {})), "'request' or 'notification', not 'reply'"),
        (Provider(("request", "x", one, {"speed": 3})), "speed"),
        (Provider(("request", "x", plain_async, {"thread": True})), "thread=True is for plain"),
    ],
)
def test_a_provider_that_cannot_be_registered_leaves_nothing(provider: Any, expected: str) -> None:
    registry = Handlers()
    with pytest.raises(TypeError, match=expected):
        registry.register(provider)
    assert chain_of(registry).for_request("add") == ()


# -- bounds ------------------------------------------------------------------------------------


def test_methods_that_are_only_asked_for_are_not_remembered() -> None:
    registry, session = Handlers(), Handlers()
    registry.on_request("*")(one)
    session.on_request("a")(two)
    chain = HandlerChain(session, registry)
    known = chain.for_request("a")
    found = {id(chain.for_request(f"unknown{number}")) for number in range(1000)}
    assert len(found) == 1, "one chain serves all of them"
    assert chain.for_request("a") is known
