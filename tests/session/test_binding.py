"""How params from the wire become the arguments of a handler, seen through `Handler.invoke`."""

import enum
import functools
import inspect
import math
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, NewType, Protocol, TypedDict, TypeVar, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.errors import InvalidParams
from asyncipc.session.context import Call, CallOwner
from asyncipc.session.handler import Handler
from asyncipc.wire.types import message

T = TypeVar("T")
UserId = NewType("UserId", int)


@message(name="test_binding.Circle")
@dataclass
class Circle:
    radius: int


@message(name="test_binding.Square")
@dataclass
class Square:
    side: int


@message(name="test_binding.RoundedSquare")
@dataclass
class RoundedSquare(Square):
    rounding: int = 1


@message(name="test_binding.Triangle")
@dataclass
class Triangle:
    base: int


@dataclass
class Point:
    x: int
    y: int


@dataclass
class Size:
    x: int
    y: int


class Color(enum.Enum):
    RED = 1
    GREEN = 2


class Options(TypedDict, total=False):
    depth: int


class Pair(NamedTuple):
    left: int
    right: str


class Closeable(Protocol):
    def close(self) -> None: ...


class Opaque:
    pass


def make_call(method: str) -> Call:
    return Call(cast("CallOwner", None), 2, method, None, {})


def invoke(function: Callable[..., Any], params: Any, method: str = "resize") -> Any:
    return Handler(method, function).invoke(params, make_call(method))


def error_of(function: Callable[..., Any], params: Any, method: str = "resize") -> str:
    with pytest.raises(InvalidParams) as caught:
        invoke(function, params, method)
    assert caught.value.__cause__ is None
    return str(caught.value)


def refusal_of(function: Any) -> str:
    """Why a function cannot be registered."""
    with pytest.raises(TypeError) as caught:
        Handler("resize", function)
    return str(caught.value)


def annotated(annotation: Any) -> Callable[..., Any]:
    """A handler that returns its one parameter, which has this annotation."""

    def handler(value: Any) -> Any:
        return value

    handler.__annotations__["value"] = annotation
    return handler


# -- shapes ------------------------------------------------------------------------------------


def resize(width: int, height: int = 7, *, mode: str = "fit") -> Any:
    return width, height, mode


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([1], (1, 7, "fit")),
        ([1, 2], (1, 2, "fit")),
        ({"width": 1}, (1, 7, "fit")),
        ({"height": 2, "width": 1}, (1, 2, "fit")),
        ({"width": 1, "mode": "fill"}, (1, 7, "fill")),
        ({"mode": "fill", "height": 2, "width": 1}, (1, 2, "fill")),
    ],
)
def test_binds_by_position_and_by_name(params: Any, expected: Any) -> None:
    assert invoke(resize, params) == expected


def test_what_is_left_out_is_missing_or_its_default() -> None:
    def handler(a: Any, b: Any = 2, c: Any = 3) -> Any:
        return a, b, c

    assert invoke(handler, [1]) == invoke(handler, {"a": 1}) == (1, 2, 3)
    assert invoke(handler, [1, 5]) == invoke(handler, {"b": 5, "a": 1}) == (1, 5, 3)
    assert invoke(handler, {"c": 5, "a": 1}) == (1, 2, 5)
    incomplete: list[Any] = [None, [], {}, {"b": 1}, {"b": 1, "c": 1}]
    for params in incomplete:
        assert error_of(handler, params) == "resize() missing parameter 'a'"
    assert "takes 3 positional parameters, got 4" in error_of(handler, [1, 2, 3, 4])
    for params in ({"a": 1, "x": 1}, {"a": 1, "b": 1, "x": 1}, {"x": 1}):
        assert "unexpected parameter 'x'" in error_of(handler, params)


def test_absent_params_are_no_arguments() -> None:
    assert invoke(lambda: "called", None) == "called"
    assert invoke(lambda a=1: a, None) == 1
    assert invoke(lambda *a, **k: (a, k), None) == ((), {})
    assert invoke(lambda: "called", []) == "called"
    assert invoke(lambda: "called", {}) == "called"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, "resize() missing parameter 'width'"),
        ([], "resize() missing parameter 'width'"),
        ({"height": 2}, "resize() missing parameter 'width'"),
        ({"height": 2, "mode": "fit"}, "resize() missing parameter 'width'"),
        ([1, 2, "fill"], "resize() takes 2 positional parameters, got 3"),
        (
            {"width": 1, "widht": 1},
            "resize() unexpected parameter 'widht'; by name it takes 'width', 'height', 'mode'",
        ),
        (
            {"width": 1, "height": 1, "mode": "fit", 5: 1},
            "resize() unexpected parameter 5; by name it takes 'width', 'height', 'mode'",
        ),
        ({"width": "12"}, "resize() parameter 'width': expected int, got str ('12')"),
        (["12"], "resize() parameter 'width': expected int, got str ('12')"),
        ([1, None], "resize() parameter 'height': expected int, got NoneType (None)"),
        ({"width": True}, "resize() parameter 'width': expected int, got bool (True)"),
        ({"width": 1.0}, "resize() parameter 'width': expected int, got float (1.0)"),
        ({"width": 1, "mode": b"x"}, "resize() parameter 'mode': expected str, got bytes (b'x')"),
        (5, "resize() params should be absent, an array or a map, not int (5)"),
        ("width", "resize() params should be absent, an array or a map, not str ('width')"),
        ((1,), "resize() params should be absent, an array or a map, not tuple ((1,))"),
    ],
)
def test_errors_name_the_parameter(params: Any, expected: str) -> None:
    assert error_of(resize, params) == expected


def test_positional_only_is_not_bound_by_name() -> None:
    def handler(a: int, /, b: int = 2) -> Any:
        return a, b

    assert invoke(handler, [1]) == (1, 2)
    assert invoke(math.sqrt, [9]) == 3.0
    assert (
        error_of(handler, {"b": 1})
        == "resize() missing parameter 'a', which is taken by position only"
    )
    assert "unexpected parameter 'a'; by name it takes 'b'" in error_of(handler, {"a": 1, "b": 1})
    assert "by name it takes none" in error_of(math.sqrt, {"x": 9})


def test_keyword_only_is_not_bound_by_position() -> None:
    def handler(a: int, *, b: int) -> Any:
        return a, b

    assert invoke(handler, {"b": 2, "a": 1}) == (1, 2)
    assert error_of(handler, [1]) == "resize() missing parameter 'b', which is taken by name only"
    assert error_of(handler, {"a": 1}) == "resize() missing parameter 'b'"


def test_stars_take_the_rest_and_convert_each() -> None:
    def handler(first: str, *rest: float, **extra: tuple[int, ...]) -> Any:
        return first, rest, extra

    assert invoke(handler, ["a", 1, 2.5]) == ("a", (1.0, 2.5), {})
    assert isinstance(invoke(handler, ["a", 1])[1][0], float)
    assert invoke(handler, {"p": [1], "first": "a", "q": []}) == ("a", (), {"p": (1,), "q": ()})
    assert error_of(handler, ["a", 1, "x"]) == (
        "resize() parameter 'rest[1]': expected float, got str ('x')"
    )
    assert error_of(handler, {"first": "a", "p": 3}).startswith(
        "resize() parameter 'p': expected tuple[int, ...], got int (3): "
    )
    assert "unexpected parameter 7" in error_of(handler, {"first": "a", 7: [1]})


def test_many_names_are_not_all_listed() -> None:
    source = "def handler({}): ...".format(", ".join(f"p{number}" for number in range(100)))
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    text = error_of(namespace["handler"], {"x" * 100_000: 1})
    assert "'p0', 'p1'" in text
    assert text.endswith(", ...")
    assert len(text) < 300


def test_a_type_error_of_the_handler_is_its_own() -> None:
    def handler(a: int) -> Any:
        return a + "x"  # type: ignore[operator]

    def key_error(a: Any) -> Any:
        return {}[a]

    for params in ([1], {"a": 1}):
        with pytest.raises(TypeError, match="unsupported operand"):
            invoke(handler, params)
        with pytest.raises(KeyError):
            invoke(key_error, params)


def test_params_are_not_changed() -> None:
    """The next handler in the chain binds the same ones."""

    def handler(call: Call, a: float, b: list[int] = [], **rest: Any) -> Any:  # noqa: B006
        return NotImplemented

    for params in ([1, [2]], {"a": 1}, {"a": 1, "c": 3}):
        before = params.copy()
        invoke(handler, params)
        assert params == before


# -- as Python binds -----------------------------------------------------------------------------


@dataclass
class Shape:
    """A signature in which every kind of parameter may stand, annotated `Call` or not at all."""

    positional_only: list[str]
    plain: list[str]
    rest: bool
    keyword_only: list[str]
    extra: bool

    def function(self, *, with_calls: bool) -> Callable[..., dict[str, Any]]:
        """A function that returns its arguments by name."""

        def kept(parameters: list[str]) -> list[str]:
            return [each for each in parameters if with_calls or "Call" not in each]

        parts = kept(self.positional_only)
        parts += ["/"] if parts else []
        parts += kept(self.plain)
        keyword_only = kept(self.keyword_only)
        if self.rest or keyword_only:
            parts.append("*rest" if self.rest else "*")
        parts += keyword_only
        parts += ["**extra"] if self.extra else []
        namespace: dict[str, Any] = {"Call": Call}
        exec(f"def handler({', '.join(parts)}):\n    return dict(locals())", namespace)
        handler: Callable[..., dict[str, Any]] = namespace["handler"]
        return handler

    def calls(self, parameters: list[str]) -> set[str]:
        return {each[0] for each in parameters if "Call" in each}


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    names = iter("abcdefg")

    def parameters(most: int) -> list[str]:
        annotations = st.sampled_from(["", "", ": Call", ": 'Call | None'"])
        return [next(names) + draw(annotations) for _ in range(draw(st.integers(0, most)))]

    positional_only, plain, keyword_only = parameters(2), parameters(3), parameters(2)
    required = draw(st.integers(0, len(positional_only) + len(plain)))
    positional = [*positional_only, *plain]
    positional[required:] = [f"{each} = 0" for each in positional[required:]]
    return Shape(
        positional[: len(positional_only)],
        positional[len(positional_only) :],
        draw(st.booleans()),
        [each + draw(st.sampled_from(["", " = 0"])) for each in keyword_only],
        draw(st.booleans()),
    )


def bound_by_python(shape: Shape, params: Any, call: Call) -> dict[str, Any] | None:
    """The arguments by name, as Python binds what is no `Call`; None if they don't fit."""
    function = shape.function(with_calls=False)
    try:
        arguments = function(**params) if isinstance(params, dict) else function(*params or ())
    except TypeError:
        return None
    by_name = shape.calls(shape.plain + shape.keyword_only)
    if by_name & arguments.get("extra", {}).keys():
        return None
    return arguments | dict.fromkeys(by_name | shape.calls(shape.positional_only), call)


@given(
    shapes(),
    st.lists(st.dictionaries(st.sampled_from("abcdefgx"), st.integers()), min_size=3, max_size=6),
)
def test_binds_as_python_does(shape: Shape, maps: list[dict[str, int]]) -> None:
    handler = Handler("resize", shape.function(with_calls=True))
    call = make_call("resize")
    arrays = [list(range(10, 10 + size)) for size in range(8)]
    complete = [dict.fromkeys("abcdefg"[:size], 1) for size in range(8)]
    for params in (None, *arrays, *complete, *maps):
        expected = bound_by_python(shape, params, call)
        if expected is None:
            with pytest.raises(InvalidParams):
                handler.invoke(params, call)
        else:
            assert handler.invoke(params, call) == expected


# -- the call ------------------------------------------------------------------------------------


def test_call_is_passed_and_takes_nothing_from_the_wire() -> None:
    def first(call: Call, n: int, text: str) -> Any:
        return call, n, text

    def middle(n: int, call: "Call", text: str) -> Any:
        return call, n, text

    def last(n: int, text: str, call: Call | None = None) -> Any:
        return call, n, text

    def by_name(n: int, text: str, *, here: Call) -> Any:
        return here, n, text

    for function in (first, middle, last, by_name):
        handler = Handler("resize", function)
        call = make_call("resize")
        for params in ([1, "a"], {"n": 1, "text": "a"}):
            passed, *rest = handler.invoke(params, call)
            assert passed is call
            assert rest == [1, "a"]


def test_call_cannot_be_given_from_the_wire() -> None:
    def handler(n: int, call: Call, **extra: Any) -> Any:
        return n, extra

    assert error_of(handler, {"n": 1, "call": 2}) == (
        "resize() unexpected parameter 'call'; by name it takes 'n'"
    )
    assert invoke(handler, {"n": 1, "x": 2}) == (1, {"x": 2})
    assert invoke(lambda call: call, [5]) == 5, "only the annotation makes it the Call"


def test_call_cannot_be_starred() -> None:
    def handler(*calls: Call) -> None: ...

    assert "parameter 'calls': there is only one Call" in refusal_of(handler)


# -- values --------------------------------------------------------------------------------------

OPAQUE = Opaque()
CIRCLE, SQUARE, ROUNDED = Circle(1), Square(2), RoundedSquare(3, 4)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (bool, True, True),
        (tuple, [1, 2], (1, 2)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[int, ...], (1, 2), (1, 2)),
        (set[int], [1, 2], {1, 2}),
        (frozenset[str], {"a"}, frozenset({"a"})),
        (list[tuple[int, int]], [[1, 2]], [(1, 2)]),
        (list[Any], [1, "a"], [1, "a"]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (int | None, None, None),
        (int | None, 3, 3),
        (None, None, None),
        (int | str, "a", "a"),
        (int | Any, 1.5, 1.5),
        (Literal["a", "b"], "b", "b"),
        (Annotated[int, msgspec.Meta(gt=3)], 4, 4),
        (UserId, 5, 5),
        (T, "a", "a"),
        (Color, 2, Color.GREEN),
        (Color, Color.RED, Color.RED),
        (Point, {"x": 1, "y": 2}, Point(1, 2)),
        (Point | None, Point(1, 2), Point(1, 2)),
        (list[Point], [{"x": 1, "y": 2}], [Point(1, 2)]),
        (Options, {"depth": 1}, {"depth": 1}),
        (Pair, [1, "a"], Pair(1, "a")),
        (Sequence[int], [1], [1]),
        (Opaque, OPAQUE, OPAQUE),
        ("Point", {"x": 1, "y": 2}, Point(1, 2)),
        (Circle, {"radius": 1}, Circle(1)),
        (Circle | Square, CIRCLE, CIRCLE),
        (Circle | Square | None, None, None),
        (Circle | Square | str, "a", "a"),
        (list[Circle | Square], [CIRCLE, SQUARE], [CIRCLE, SQUARE]),
        (dict[str, Circle | Square | None], {"a": None, "b": SQUARE}, {"a": None, "b": SQUARE}),
        (tuple[Circle | Square, ...], [CIRCLE], (CIRCLE,)),
        (list[Circle | Square | str], ["a", ROUNDED], ["a", ROUNDED]),
    ],
)
def test_converts_by_annotation(annotation: Any, value: Any, expected: Any) -> None:
    for params in ([value], {"value": value}):
        result = invoke(annotated(annotation), params)
        assert result == expected
        assert type(result) is type(expected)


@pytest.mark.parametrize("annotation", [Any, object, inspect.Parameter.empty, T, int | Any])
def test_without_annotation_everything_passes(annotation: Any) -> None:
    handler = annotated(annotation)
    if annotation is inspect.Parameter.empty:
        del handler.__annotations__["value"]
    for value in (1, "a", None, [1], {"a": 1}, OPAQUE, float("nan")):
        assert invoke(handler, [value]) is value
        assert invoke(handler, {"value": value}) is value


@pytest.mark.parametrize("annotation", [Square, Square | None, Circle | Square, "Circle | Square"])
@pytest.mark.parametrize("value", [SQUARE, ROUNDED])
def test_message_objects_pass_through(annotation: Any, value: Any) -> None:
    assert invoke(annotated(annotation), [value]) is value


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, "12", "expected int, got str ('12')"),
        (int, True, "expected int, got bool (True)"),
        (bool, 1, "expected bool, got int (1)"),
        (bytes, "abcd", "expected bytes, got str ('abcd')"),
        (str, None, "expected str, got NoneType (None)"),
        (int | None, "a", "expected int | None, got str ('a')"),
        (float, 2**2000, "expected float, got int (<int of 2001 bits>)"),
        (Circle | Square, 5, "expected test_binding.Circle | test_binding.Square, got int (5): "),
        (Circle | Square, {"side": 1}, ", got dict ({'side': 1}): "),
        (Circle | Square, Point(1, 2), ", got Point (Point(x=1, y=2)): "),
        (Circle | Square, Triangle(1), ", got Triangle (Triangle(base=1)): "),
        (Circle | Square | int, True, ", got bool (True): "),
        (list[Circle | Square | int], [True], ", got list ([True]): "),
        (Point, {"x": 1}, "expected Point, got dict ({'x': 1}): Object missing required field `y`"),
        (list[int], [1, "a"], "expected list[int], got list ([1, 'a']): "),
        (Color, 9, "expected Color, got int (9): "),
        (Opaque, 5, "expected Opaque, got int (5): "),
        (Annotated[int, msgspec.Meta(gt=3)], 3, "got int (3): Expected `int` >= 4"),
    ],
)
def test_a_value_that_does_not_fit(annotation: Any, value: Any, expected: str) -> None:
    for params in ([value], {"value": value}):
        text = error_of(annotated(annotation), params).replace(f"{__name__}.", "test_binding.")
        assert text.startswith("resize() parameter 'value': ")
        assert expected in text
        assert text.endswith(expected) or expected.endswith(": "), "nothing follows unannounced"


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        b"x" * 1_000_000,
        bytearray(1_000_000),
        [b"x" * 1_000_000] * 9,
        1 << 10_000_000,
        {str(number): "y" * 1000 for number in range(1000)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_large_values_are_shortened_without_writing_them_out(value: Any) -> None:
    handler = Handler("resize", annotated(Opaque))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidParams) as caught:
            handler.invoke([value], make_call("resize"))
        assert len(str(caught.value)) < 300
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_the_method_of_the_call_is_named_shortened() -> None:
    def handler(a: int) -> None: ...

    assert error_of(handler, [], method="img/resize") == "img/resize() missing parameter 'a'"
    invoked = Handler("*", handler).invoke
    with pytest.raises(InvalidParams) as caught:
        invoked(["x"], make_call("m" * 100_000))
    assert len(str(caught.value)) < 300


def test_a_value_whose_repr_fails() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    assert "expected int, got " in error_of(annotated(int), [Broken()])


# -- registration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("Missing", "annotation 'Missing' cannot be resolved (name 'Missing' is not defined)"),
        ("list[Missing]", "annotation 'list[Missing]' cannot be resolved"),
        ("not python", "cannot be resolved"),
        (Point | Size, "more than one dataclass"),
        (list[Point | Size], "more than one dataclass"),
        (Point | Circle | list[int], "more than one dataclass"),
        (Annotated[Circle | Square, "a shape"], "more than one dataclass"),
        (list | tuple, "more than one array-like"),
        (Opaque | int, "custom type"),
        (5, "not supported"),
        (Closeable, "runtime_checkable"),
        (Call | int, "custom type"),
    ],
)
def test_annotations_that_cannot_work_are_found_at_registration(
    annotation: Any, expected: str
) -> None:
    text = refusal_of(annotated(annotation))
    assert "annotated.<locals>.handler cannot handle 'resize': parameter 'value': " in text
    assert expected in text


def test_the_return_annotation_is_not_looked_at() -> None:
    def handler(a: int) -> "Missing":  # type: ignore[name-defined]  # noqa: F821
        return a

    assert invoke(handler, [1]) == 1


@pytest.mark.parametrize("function", [int, max, getattr])
def test_a_builtin_without_signature_is_refused(function: Any) -> None:
    assert "its signature cannot be read" in refusal_of(function)


class Multiplier:
    def __init__(self, factor: "int") -> None:
        self.factor = factor

    def method(self, n: "int") -> int:
        return self.factor * n

    def __call__(self, n: "int") -> int:
        return self.factor * n

    @classmethod
    def of_class(cls, n: int) -> int:
        return n

    @staticmethod
    def static(n: int) -> int:
        return n


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@logged
def decorated(n: "int") -> Any:
    return n


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Multiplier(2).method, 6),
        (Multiplier(2), 6),
        (Multiplier.of_class, 3),
        (Multiplier.static, 3),
        (decorated, 3),
        (functools.partial(Multiplier(2)), 6),
        (functools.partial(resize, height=2, mode="fill"), (3, 2, "fill")),
        (functools.partial(resize, 1), (1, 3, "fit")),
        (functools.lru_cache(Multiplier(5).method), 15),
        (lambda n: n, 3),
        (abs, 3),
        ([].append, None),
    ],
)
def test_callables_of_all_kinds(function: Any, expected: Any) -> None:
    assert invoke(function, [3]) == expected


@pytest.mark.parametrize(
    "function", [Multiplier(2), Multiplier(2).method, decorated, functools.partial(decorated)]
)
def test_their_annotations_count(function: Any) -> None:
    assert error_of(function, ["3"]) == "resize() parameter 'n': expected int, got str ('3')"


def test_a_class_makes_an_instance() -> None:
    assert invoke(Multiplier, {"factor": 4}).factor == 4
    assert "parameter 'factor': expected int" in error_of(Multiplier, ["4"])
    assert invoke(Point, [1, 2]) == Point(1, 2)
