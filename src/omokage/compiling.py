"""Functions that PyTorch's compiler fuses for the machine before their first use, as long as that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

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
            # Seconds that only those wait for who compile.
            from torch._dynamo.exc import TorchDynamoException

            try:
                return self._compiled(*given, **named)
            except TorchDynamoException as error:
                self.works = False
                self._say(
                    f"{self._what} as they are, since they cannot be compiled on this machine ({_cause(error)}); a C++ "
                    "compiler, and for a graphics card the package triton, are needed"
                )
        return self._plain(*given, **named)


def _cause(error: Any) -> str:
    """What the compiler itself says, which stands behind what PyTorch says of it."""
    inner = getattr(error, "inner_exception", error)
    return f"{type(inner).__name__}: {inner}".splitlines()[0].rstrip(".:")
