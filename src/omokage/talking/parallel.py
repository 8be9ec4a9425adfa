"""One animation by several processes: each computes one half of guidance, a part of the tokens, or both.

Guidance: of each pair one process evaluates the null conditions and one the given ones; once a step they exchange what
came out. Tokens: every process has the same share of the text and of each latent frame through all layers; only the
joint attention sees all tokens, for which the shares are exchanged for heads and back (Ulysses; Jacobs et al. 2023,
section 3.1). Keys and values of portrait, face and speech are everywhere; each process uses those of its heads.

Shape letters: B batch, T latent frames, P tokens of a latent frame, n tokens of this process, N of all, A heads, d head
width, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, distributed

from omokage.errors import InputError
from omokage.talking.attention import Rotaries, Rotary, attend_jointly
from omokage.talking.blocks import Tokens
from omokage.talking.caches import KeyValue
from omokage.talking.config import SamplerConfig
from omokage.workers import Workers


@dataclass(frozen=True)
class Layout:
    """How many processes share the work: over the `halves` of guidance, and `parts` of the tokens in each half."""

    halves: int = 1
    parts: int = 1

    @classmethod
    def of(cls, world: int, sampler: SamplerConfig, heads: int) -> Self:
        """For so many processes: an even number shares guidance, where there is any, and the rest are parts.

        Raises InputError for parts that the heads of attention cannot be shared between.
        """
        halves = _halves(world, sampler)
        parts = world // halves
        if heads % parts:
            fitting = [
                count for count in range(1, 2 * heads + 1) if heads % (count // _halves(count, sampler)) == 0
            ]
            raise InputError(
                f"{world} processes cannot share this network's {heads} attention heads; start one of "
                f"{', '.join(map(str, fitting))}"
            )
        return cls(halves, parts)

    @staticmethod
    def largest(count: int, sampler: SamplerConfig, heads: int) -> int:
        """The most of `count` processes that can share the work."""
        return next(n for n in range(count, 0, -1) if heads % (n // _halves(n, sampler)) == 0)

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.halves * self.parts

    @property
    def sentence(self) -> str:
        """For the user."""
        shared = ["the two halves of guidance"] if self.halves > 1 else []
        if self.parts > 1:
            shared.append(f"{self.parts} parts of the tokens")
        return f"{self.world} processes share {' and '.join(shared)}"

    def sampler(self, config: SamplerConfig) -> SamplerConfig:
        """The same for such processes: who shares guidance has one half of it at a time."""
        return replace(config, together=config.together and self.halves == 1)


ALONE = Layout()


def _halves(count: int, sampler: SamplerConfig) -> int:
    return 2 if sampler.guided_steps and count % 2 == 0 else 1


@dataclass(frozen=True)
class TokenShare:
    """The tokens of one process: those of `rank` of `count` equal shares, and those who have the others (`group`)."""

    rank: int
    count: int
    group: Any

    def cut(self, tokens: Tokens, turns: Rotaries) -> tuple[Tokens, Rotaries]:
        """This share of all tokens of a pass, and their turns, with an attention that sees those of all shares."""
        text, frame = tokens.text.shape[1], len(turns.frame.cosine)
        words, cells = self._slices(text)[self.rank], self._slices(frame)[self.rank]

        def of_video(video: Tensor, axis: int) -> Tensor:
            framed = torch.unflatten(video, axis, (-1, frame))
            return framed.narrow(axis + 1, *cells).flatten(axis, axis + 1)

        def of_joint(table: Tensor) -> Tensor:
            return torch.cat([table[:text].narrow(0, *words), of_video(table[text:], 0)])

        frames = tokens.video.shape[1] // frame
        pairs = zip(self._slices(text), self._slices(frame), strict=True)
        lengths = tuple(some[1] + frames * others[1] for some, others in pairs)
        joint, still = turns.joint, turns.frame
        return (
            Tokens(tokens.text.narrow(1, *words), of_video(tokens.video, 1)),
            replace(
                turns,
                joint=Rotary(of_joint(joint.cosine), of_joint(joint.sine)),
                frame=Rotary(still.cosine.narrow(0, *cells), still.sine.narrow(0, *cells)),
                attend=partial(_uncompiled_attention(), self, lengths),
            ),
        )

    def join(self, video: Tensor, frame: int) -> Tensor:
        """What all shares made of their video tokens, (B, T*p, C) -> (B, T*P, C); `frame`: P."""
        slices = self._slices(frame)
        longest = max(length for _, length in slices)
        mine = torch.unflatten(video, 1, (-1, slices[self.rank][1]))
        padded = mine.new_zeros(*mine.shape[:2], longest, mine.shape[3])
        padded[:, :, : mine.shape[2]] = mine
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(gathered, padded, group=self.group)
        parts = [part[:, :, :length] for part, (_, length) in zip(gathered, slices, strict=True)]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of what all shares have; the same to the bit for all of them."""
        shared = value.clone()
        distributed.all_reduce(shared, group=self.group)
        return shared / self.count

    def attend(
        self,
        lengths: tuple[int, ...],
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        reference: KeyValue | None,
    ) -> Tensor:
        """Attention of this share's tokens (B, A, n, d) to those of all shares, of which `lengths` says how many."""
        everyone = self._for_heads(torch.stack([queries, keys, values]), lengths)
        if reference is not None:
            heads = everyone.shape[2]
            mine = slice(self.rank * heads, (self.rank + 1) * heads)
            reference = KeyValue(reference.keys[:, mine], reference.values[:, mine])
        gathered = attend_jointly(everyone[0], everyone[1], everyone[2], reference)
        return self._for_tokens(gathered, lengths)

    def _for_heads(self, own: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(3, B, A, n, d) of these tokens and all heads -> (3, B, a, N, d) of all tokens, share by share."""
        # (shares, 3, B, a, n, d)
        outgoing = torch.unflatten(own, 2, (self.count, -1)).movedim(2, 0).contiguous()
        three, batch, heads, _, width = outgoing.shape[1:]
        sizes = [three * batch * heads * length * width for length in lengths]
        incoming = own.new_empty(sum(sizes))
        distributed.all_to_all_single(
            incoming, outgoing.flatten(), output_split_sizes=sizes, input_split_sizes=None, group=self.group
        )
        parts = zip(torch.split(incoming, sizes), lengths, strict=True)
        return torch.cat([part.view(three, batch, heads, length, width) for part, length in parts], dim=3)

    def _for_tokens(self, gathered: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(B, a, N, d) of all tokens -> (B, A, n, d) of all heads and these tokens."""
        parts = [part.flatten() for part in torch.split(gathered, list(lengths), dim=2)]
        sizes = [part.numel() for part in parts]
        batch, heads, _, width = gathered.shape
        incoming = gathered.new_empty(self.count, batch, heads, lengths[self.rank], width)
        distributed.all_to_all_single(
            incoming.view(-1),
            torch.cat(parts),
            output_split_sizes=None,
            input_split_sizes=sizes,
            group=self.group,
        )
        return incoming.movedim(0, 1).flatten(1, 2)

    def _slices(self, total: int) -> list[tuple[int, int]]:
        """First place and length of each share of so many things, as equal as can be."""
        edges = [total * share // self.count for share in range(self.count + 1)]
        return [(begin, end - begin) for begin, end in pairwise(edges)]


@cache
def _uncompiled_attention() -> Callable[..., Tensor]:
    """`TokenShare.attend`, which the compiler leaves alone: one object, so that nothing is compiled twice. Made when it
    is needed, since asking for it loads the compiler."""
    attend: Callable[..., Tensor] = torch.compiler.disable(TokenShare.attend)  # type: ignore[no-untyped-call]
    return attend


@dataclass(frozen=True)
class GuidancePair:
    """Two processes with one half of guidance each; `is_null`: this one has the null conditions."""

    is_null: bool
    group: Any

    def exchange(self, mine: Tensor) -> tuple[Tensor, Tensor]:
        """What came of the null and of the given conditions, the same for both processes."""
        both = [torch.empty_like(mine) for _ in range(2)]
        distributed.all_gather(both, mine.contiguous(), group=self.group)
        return both[0], both[1]


@dataclass(frozen=True)
class Team:
    """The processes of one animation, how they share it, and whom this one exchanges with."""

    workers: Workers
    layout: Layout = ALONE
    pair: GuidancePair | None = None
    share: TokenShare | None = None

    @classmethod
    def gather(
        cls, workers: Workers, sampler: SamplerConfig, heads: int, layout: Layout | None = None
    ) -> Self:
        """All processes call this together. `layout`: instead of that of `Layout.of`, which raises InputError."""
        layout = layout or Layout.of(workers.world, sampler, heads)
        if workers.world == 1:
            return cls(workers)
        half, part = divmod(workers.rank, layout.parts)
        # Every process has to make every group, its own or not.
        sharing = [
            distributed.new_group([first * layout.parts + i for i in range(layout.parts)])
            for first in range(layout.halves)
        ]
        pairs = [
            distributed.new_group([first * layout.parts + i for first in range(layout.halves)])
            for i in range(layout.parts)
        ]
        return cls(
            workers,
            layout,
            GuidancePair(half == 0, pairs[part]) if layout.halves > 1 else None,
            TokenShare(part, layout.parts, sharing[half]) if layout.parts > 1 else None,
        )
