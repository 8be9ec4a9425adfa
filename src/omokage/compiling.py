"""Functions that PyTorch's compiler fuses for the machine before their first use, as long as that works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, ParamSpec, TypeVar

from omokage.errors import MissingDependencyError

BACKEND = "inductor"
Given = ParamSpec("Given")
Result = TypeVar("Result")


class Compiled(Generic[Given, Result]):
    """`plain`, computed by `compiled`; where the compiler fails it runs as it is, and `say` hears a sentence once.

    compiled: what `torch.compile` made of it.  what: the sentence's subject, such as "layers run".
    """

    def __init__(
        self,
        compiled: Callable[Given, Result],
        plain: Callable[Given, Result],
        *,
        say: Callable[[str], None],
        what: str,
    ) -> None:
        self._compiled, self._plain, self._say, self._what = compiled, plain, say, what
        self.works = True

    def __call__(self, *given: Given.args, **named: Given.kwargs) -> Result:
        if self.works:
            try:
                with compiler_required():
                    return self._compiled(*given, **named)
            except MissingDependencyError as error:
                self.works = False
                self._say(f"{self._what} as they are, since they {error}")
        return self._plain(*given, **named)


@contextmanager
def compiler_required() -> Iterator[None]:
    """Where the compiler fails MissingDependencyError says so; its words begin with 'cannot be compiled'."""
    # Seconds that only those wait for who compile.
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        # What the compiler itself says stands behind what PyTorch says of it.
        inner = getattr(error, "inner_exception", error)
        cause = f"{type(inner).__name__}: {inner}".splitlines()[0].rstrip(".:")
        raise MissingDependencyError(
            f"cannot be compiled on this machine ({cause}); a C++ compiler, and for a graphics card the package "
            "triton, are needed"
        ) from error
