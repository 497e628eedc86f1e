"""Padded and packed layouts of a batch of token vectors: only the real tokens, or every position of [batch, columns].

A batch of sentences of different lengths is padded to its longest. Every part of a transformer layer but the product
of queries and keys works token by token, so it can run on the real tokens alone, packed one after another, longest
sentence first. For that product sentences of similar length form a group, padded to the group's longest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# a new group costs some 30 small operations per layer, as much as this many attention scores of a head
MIN_SCORES_SAVED = 4096
MIN_LENGTH_RATIO = 1.25


@dataclass(frozen=True)
class Group:
    """Sentences whose scores are formed together, padded to [batch, length].

    start, stop: the group's slice of the packed tokens; all if nothing is packed.
    real: int64 [tokens], flat positions of its tokens in [batch * length]; None if they fill it, or nothing is packed.
    padding: bool [batch, length], True at padding; None if there is none.
    """

    batch: int
    length: int
    start: int = 0
    stop: int | None = None
    real: Tensor | None = None
    padding: Tensor | None = None

    def split_heads(self, states: Tensor, heads: int) -> Tensor:
        """Return the group's tokens of [tokens, hidden] or [batch, length, hidden] as [heads, batch, length, size]."""
        states, size = states[self.start : self.stop], states.size(-1) // heads
        if self.real is None:
            return states.reshape(self.batch, self.length, heads, size).permute(2, 0, 1, 3)
        padded = states.new_zeros(heads, self.batch * self.length, size)
        padded.index_copy_(1, self.real, states.view(-1, heads, size).transpose(0, 1))
        return padded.view(heads, self.batch, self.length, size)

    def join_heads(self, states: Tensor, packed: bool) -> Tensor:
        """Undo `split_heads`: [heads, batch, length, size] to [tokens, hidden] or [batch, length, hidden]."""
        heads, size = states.size(0), states.size(-1)
        if self.real is None:
            shape = (-1,) if packed else (self.batch, self.length)
            return states.permute(1, 2, 0, 3).reshape(*shape, heads * size)
        tokens = states.reshape(heads, -1, size).transpose(0, 1).index_select(0, self.real)
        return tokens.reshape(-1, heads * size)


@dataclass(frozen=True)
class TokenLayout:
    """Positions of the tokens of one batch while the layers run.

    batch, columns: shape of the caller's mask; length: the longest sentence.
    real: int64 [tokens], flat positions in [batch * columns] of the packed tokens; None if nothing is packed.
    """

    batch: int
    columns: int
    length: int
    groups: tuple[Group, ...]
    real: Tensor | None = None

    def pack(self, states: Tensor) -> Tensor:
        """Return [batch, columns, hidden] in the layout of the layers: [tokens, hidden] if packed."""
        return states if self.real is None else states.reshape(-1, states.size(-1)).index_select(0, self.real)

    def unpack(self, states: Tensor) -> Tensor:
        """Undo `pack`, with zeros at every padded position."""
        if self.real is None:
            padding = self.groups[0].padding
            return states if padding is None else states.masked_fill(padding.unsqueeze(-1), 0.0)
        padded = states.new_zeros(self.batch * self.columns, states.size(-1))
        return padded.index_copy_(0, self.real, states).view(self.batch, self.columns, -1)


def layout_of(attention_mask: Tensor, *, pack: bool) -> TokenLayout:
    """Return the layout for a mask [batch, columns], non-zero at real tokens, on any device.

    pack=False keeps every position, so that nothing depends on the mask's values.
    """
    batch, columns = attention_mask.shape
    mask = attention_mask.bool()
    whole = TokenLayout(batch, columns, columns, (Group(batch, columns, padding=~mask),))
    # a GPU is bound by launching kernels, of which packing needs more, and would be asked for the lengths
    if not pack or mask.device.type != "cpu":
        return whole
    # a sentence spans its first to its last real token; only distances inside it matter
    first, last = mask.int().argmax(1), columns - 1 - mask.flip(1).int().argmax(1)
    spans = torch.where(mask.any(1), last - first + 1, 0)
    spans, order = spans.sort(descending=True, stable=True)
    mask = mask[order]
    row, column = mask.nonzero(as_tuple=True)
    lengths, ends = spans.tolist(), mask.sum(1).cumsum(0).tolist()
    if ends[-1] == 0:  # nothing but padding: there is no token to pack
        return whole
    if ends[-1] == batch * columns:
        return TokenLayout(batch, columns, columns, (Group(batch, columns),))
    found = []
    column_in_sentence = column - first[order][row]
    for start, stop in _group_bounds(lengths):
        first_token, end = ends[start - 1] if start else 0, ends[stop - 1]
        count, length = stop - start, lengths[start]
        if end - first_token == count * length:
            found.append(Group(count, length, first_token, end))
            continue
        position = (row[first_token:end] - start) * length + column_in_sentence[first_token:end]
        padding = torch.ones(count * length, dtype=torch.bool, device=mask.device)
        padding[position] = False
        found.append(Group(count, length, first_token, end, position, padding.view(count, length)))
    return TokenLayout(batch, columns, lengths[0], tuple(found), order[row] * columns + column)


def _group_bounds(lengths: list[int]) -> list[tuple[int, int]]:
    """Return (start, stop) of groups of descending sentence lengths; a group starts if that saves enough scores."""
    real, starts = sum(length > 0 for length in lengths), [0]
    for index in range(1, real):
        longest, length = lengths[starts[-1]], lengths[index]
        saved = (real - index) * (longest**2 - length**2)
        if saved >= MIN_SCORES_SAVED and length * MIN_LENGTH_RATIO <= longest:
            starts.append(index)
    return list(zip(starts, [*starts[1:], real], strict=True))
