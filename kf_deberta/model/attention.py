"""DeBERTa's disentangled attention, computed only for the relative distances that occur: the same numbers, sooner.

The score of tokens i and j (DeBERTa, arXiv 2006.03654, section 3, equations 2 to 4) is

    (Qc_i . Kc_j  +  Qc_i . Kr_d(i,j)  +  Kc_j . Qr_d(i,j)) / sqrt(3 * size of a head)

where Kr and Qr are projections of a table of relative positions and d(i, j) depends on i - j alone. transformers
projects all rows of the table (512 in kf-deberta-base), copies both projections once per sentence, multiplies every
token with every row and gathers. A sentence of L tokens has 2L - 1 distances, so here only their rows are projected,
once for the batch, and the gather is a shifted view. The parts of a layer that work token by token leave out padding
(`packing.py`). Parameters, their names and what `save_pretrained` writes stay as they are.
"""

import math

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from kf_deberta.model.packing import TokenLayout, layout_of


def use_fast_attention(model: nn.Module) -> int:
    """Switch every DebertaV2 encoder inside `model` to the fast path, in place; return the number switched.

    Outputs and gradients are the library's at every real token, to rounding; at padded positions `last_hidden_state`
    is zero. A call for attention weights, or with a 3-dimensional mask, runs the library's code.
    """
    encoders = [module for module in model.modules() if type(module) is DebertaV2Encoder]
    for encoder in encoders:
        # only the class changes: parameters, buffers, hooks, pickling and copying are untouched
        encoder.__class__ = FastDebertaV2Encoder
        for layer in encoder.layer:
            layer.attention.self.__class__ = FastSelfAttention
    return len(encoders)


class FastSelfAttention(DisentangledSelfAttention):
    """DisentangledSelfAttention on a TokenLayout; with an ordinary mask it is the library's."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | TokenLayout, *others, **options
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context of hidden states in the layout given as `attention_mask`, in the same layout.

        Options: rel_embeddings [rows, hidden], the table of relative positions or the slice with the rows that occur;
        relative_pos int64 [2 * length + 1], row of each distance -length..length; None if rows are in that order.
        """
        if not isinstance(attention_mask, TokenLayout):
            return super().forward(hidden_states, attention_mask, *others, **options)
        relative_pos, rel_embeddings = options["relative_pos"], options["rel_embeddings"]
        terms = ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = 1 / math.sqrt(self.attention_head_size * (1 + terms))
        query, key = self.query_proj(hidden_states) * scale, self.key_proj(hidden_states)
        value = self.value_proj(hidden_states)
        key_rows = query_rows = None  # [2 * longest + 1, hidden], by distance, distance 0 in the middle
        if self.relative_attention and terms:
            rel_embeddings = self.pos_dropout(rel_embeddings)
            if "c2p" in self.pos_att_type:
                key_rows = (self.key_proj if self.share_att_key else self.pos_key_proj)(rel_embeddings)
                key_rows = key_rows if relative_pos is None else key_rows.index_select(0, relative_pos)
            if "p2c" in self.pos_att_type:
                query_rows = (self.query_proj if self.share_att_key else self.pos_query_proj)(rel_embeddings) * scale
                query_rows = query_rows if relative_pos is None else query_rows.index_select(0, relative_pos)
        contexts = []
        for group in attention_mask.groups:
            queries, keys, values = (group.split_heads(x, self.num_attention_heads) for x in (query, key, value))
            scores = torch.matmul(queries, keys.transpose(-1, -2))
            if key_rows is not None:
                # row i, column c is the distance length - 1 - c: distance i - j is in column j - i + length - 1
                scores = scores + _by_distance(queries, _middle(key_rows, group.length)[:-1].flip(0))
            if query_rows is not None:
                # here key j is the row, and distance i - j is in column i - j + length - 1
                scores = scores + _by_distance(keys, _middle(query_rows, group.length)[1:]).transpose(-1, -2)
            if group.padding is not None:
                scores = scores.masked_fill(group.padding[None, :, None, :], torch.finfo(scores.dtype).min)
            context = torch.matmul(self.dropout(nn.functional.softmax(scores, dim=-1)), values)
            contexts.append(group.join_heads(context, packed=attention_mask.real is not None))
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts), None


def _middle(rows: Tensor, length: int) -> Tensor:
    """Return the rows of distances -length..length."""
    return rows[rows.size(0) // 2 - length : rows.size(0) // 2 + length + 1]


def _by_distance(states: Tensor, rows: Tensor) -> Tensor:
    """Return the products of token i with the row of its distance to token j, a view [heads, batch, length, length].

    states: [heads, batch, length, size]; rows: [2 * length, heads * size]. The product of token i with row c is at
    [i, c]; we want [i, j - i + length - 1]. In memory that is position i * (2 * length - 1) + j + length - 1: the
    same numbers read with rows one element shorter. For length 2, with xy the product of token x and row y:

        00 01 02 03      read from position length - 1, in rows of 2 * length - 1:    01 02 03      wanted:  01 02
        10 11 12 13                                                                   10 11 12               10 11
    """
    heads, batch, length, size = states.shape
    tokens = states.reshape(heads, batch * length, size)
    products = torch.bmm(tokens, rows.view(2 * length, heads, size).permute(1, 2, 0))
    flat = products.view(heads, batch, 2 * length * length)
    shifted = flat[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return shifted.reshape(heads, batch, length, 2 * length - 1)[..., :length]


class FastDebertaV2Encoder(DebertaV2Encoder):
    """DebertaV2Encoder whose layers run on the real tokens of the batch and the distances that occur."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, output_hidden_states=True, return_dict=True, **others
    ) -> BaseModelOutput | tuple:
        """Do the library's forward: hidden_states [batch, length, hidden], attention_mask [batch, length]."""
        if attention_mask.dim() != 2 or any(value is not None and value is not False for value in others.values()):
            others |= {"output_hidden_states": output_hidden_states, "return_dict": return_dict}
            return super().forward(hidden_states, attention_mask, **others)
        # a graph must not contain the number of real tokens
        layout = layout_of(attention_mask, pack=not torch.compiler.is_compiling())
        states = layout.pack(hidden_states)
        table, rows = self._distance_table(layout.length)
        all_states = (hidden_states,)
        for i, layer in enumerate(self.layer):
            states, _ = layer(states, layout, relative_pos=rows, rel_embeddings=table)
            if i == 0 and self.conv is not None:
                states = layout.pack(self.conv(hidden_states, layout.unpack(states), attention_mask))
            if output_hidden_states and i < len(self.layer) - 1:
                all_states += (layout.unpack(states),)
        output = layout.unpack(states)
        all_states = (*all_states, output) if output_hidden_states else None
        if not return_dict:
            return (output,) if all_states is None else (output, all_states)
        return BaseModelOutput(last_hidden_state=output, hidden_states=all_states)

    def _distance_table(self, length: int) -> tuple[Tensor | None, Tensor | None]:
        """Return table rows [rows, hidden] and the row of each distance -length..length (None: in that order)."""
        table = self.get_rel_embedding()
        if table is None:
            return None, None
        buckets = self.position_buckets > 0
        span = self.position_buckets if buckets else self.max_relative_positions
        # for an exported graph the whole table is projected: constants, which the runtime folds into one stored tensor
        if not torch.compiler.is_exporting() and length < span and (not buckets or length <= span // 2):
            return table[span - length : span + length + 1], None
        distances = torch.arange(-length, length + 1, device=table.device)
        if buckets:
            distances = make_log_bucket_position(distances, span, self.max_relative_positions).long()
        return table[: 2 * span], torch.clamp(distances + span, 0, 2 * span - 1)
