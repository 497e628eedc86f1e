"""DeBERTa's disentangled attention, computed only for the relative distances that occur: the same numbers, sooner.

The score of tokens i and j (DeBERTa, arXiv 2006.03654, section 3, equations 2 to 4) is

    (Qc_i . Kc_j  +  Qc_i . Kr_d(i,j)  +  Kc_j . Qr_d(i,j)) / sqrt(3 * size of a head)

where Kr and Qr are projections of a table of relative positions and d(i, j) depends on i - j alone. transformers
projects all rows of the table (512 in kf-deberta-base), copies both projections once per sentence, multiplies every
token with every row and gathers. A sentence of L tokens has 2L - 1 distances, so here only their rows are projected,
once for the batch, and the gather is a shifted view. Padding is left out wherever a layer works token by token
(`packing.py`). Parameters, their names and what `save_pretrained` writes stay as they are.

    from kf_deberta.model.attention import use_fast_attention

    model = SentenceTransformer("kakaobank/kf-deberta-base")
    use_fast_attention(model)
"""

import logging
import math

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from kf_deberta.model.packing import Group, TokenLayout, layout_of

logger = logging.getLogger(__name__)


def use_fast_attention(model: nn.Module) -> int:
    """Switch every DebertaV2 encoder inside `model` to the fast path, in place; the number of encoders switched.

    `model` is a SentenceTransformer, a transformers model or any module. Outputs and gradients are the library's at
    every real token, to rounding; at padded positions `last_hidden_state` is zero. A call that asks for attention
    weights, or brings its own query states, relative positions or 3-dimensional mask, runs the library's code.
    Anything that is not a DebertaV2 encoder is left alone. A second call changes nothing and returns 0.
    """
    encoders = [module for module in model.modules() if isinstance(module, DebertaV2Encoder)]
    switched = 0
    for encoder in encoders:
        if type(encoder) is FastDebertaV2Encoder:
            continue
        reason = _not_covered(encoder)
        if reason:
            logger.warning("fast attention: an encoder keeps the library's attention (%s)", reason)
            continue
        # the class alone changes: parameters, buffers, hooks, pickling and copying are untouched
        encoder.__class__ = FastDebertaV2Encoder
        for layer in encoder.layer:
            layer.attention.self.__class__ = FastSelfAttention
        switched += 1
    if not encoders:
        logger.info("fast attention: %s has no DebertaV2 encoder, nothing to switch", type(model).__name__)
    return switched


def _not_covered(encoder: DebertaV2Encoder) -> str | None:
    """Why an encoder cannot take the fast path, or None."""
    if type(encoder) is not DebertaV2Encoder:
        return f"{type(encoder).__name__} is not the library's encoder"
    for layer in encoder.layer:
        if type(layer.attention.self) is not DisentangledSelfAttention:
            return f"{type(layer.attention.self).__name__} is not the library's attention"
    if encoder.relative_attention and encoder.position_buckets > 0:
        middle = encoder.position_buckets // 2
        if middle == 0 or encoder.max_relative_positions - 1 <= middle:
            return f"position_buckets {encoder.position_buckets} too large for {encoder.max_relative_positions}"
    return None


class FastSelfAttention(DisentangledSelfAttention):
    """DisentangledSelfAttention on a TokenLayout; with an ordinary mask it is the library's."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | TokenLayout,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over hidden states in the layout given as `attention_mask`; the context in the same layout.

        rel_embeddings: [rows, hidden], the table of relative positions or the slice with the rows that occur.
        relative_pos: int64 [2 * length + 1], row of each distance -length..length; None where rows are in that order.
        """
        if not isinstance(attention_mask, TokenLayout):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        terms = ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = 1 / math.sqrt(self.attention_head_size * (1 + terms))
        query, key = self.query_proj(hidden_states) * scale, self.key_proj(hidden_states)
        value = self.value_proj(hidden_states)
        position_keys = position_queries = None
        if self.relative_attention and terms:
            rel_embeddings = self.pos_dropout(rel_embeddings)
            if "c2p" in self.pos_att_type:
                project = self.key_proj if self.share_att_key else self.pos_key_proj
                position_keys = _distance_rows(project(rel_embeddings), relative_pos)
            if "p2c" in self.pos_att_type:
                project = self.query_proj if self.share_att_key else self.pos_query_proj
                position_queries = _distance_rows(project(rel_embeddings) * scale, relative_pos)
        packed = attention_mask.real is not None
        contexts = [
            group.join_heads(self._attend(group, query, key, value, position_keys, position_queries), packed)
            for group in attention_mask.groups
        ]
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts), None

    def _attend(
        self,
        group: Group,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_keys: Tensor | None,
        position_queries: Tensor | None,
    ) -> Tensor:
        """Context [heads, batch, length, size] of one group; position rows: one for each distance, middle row 0."""
        heads, length = self.num_attention_heads, group.length
        query, key, value = (group.split_heads(states, heads) for states in (query, key, value))
        scores = torch.matmul(query, key.transpose(-1, -2))
        if position_keys is not None:
            # row i, column c is the distance length - 1 - c: distance i - j is in column j - i + length - 1
            scores = scores + _by_distance(query, _middle(position_keys, length)[:-1].flip(0))
        if position_queries is not None:
            # here key j is the row, and distance i - j is in column i - j + length - 1
            scores = scores + _by_distance(key, _middle(position_queries, length)[1:]).transpose(-1, -2)
        if group.padding is not None:
            scores = scores.masked_fill(group.padding[None, :, None, :], torch.finfo(scores.dtype).min)
        return torch.matmul(self.dropout(nn.functional.softmax(scores, dim=-1)), value)


def _distance_rows(projected: Tensor, rows: Tensor | None) -> Tensor:
    """One projected row for each distance, of the longest sentence."""
    return projected if rows is None else projected.index_select(0, rows)


def _middle(rows: Tensor, length: int) -> Tensor:
    """The rows of distances -length..length."""
    middle = rows.size(0) // 2
    return rows[middle - length : middle + length + 1]


def _by_distance(states: Tensor, rows: Tensor) -> Tensor:
    """Products of token i with the row of its distance to token j.

    states: [heads, batch, length, size]; rows: [2 * length, heads * size]. Token i's product with row c stands at
    [i, c]; wanted is [i, j - i + length - 1]. In memory that is position i * (2 * length - 1) + j + length - 1: the
    same numbers read with rows one element shorter. Returns a view [heads, batch, length, length].
    """
    heads, batch, length, size = states.shape
    products = torch.bmm(
        states.reshape(heads, batch * length, size), rows.view(2 * length, heads, size).permute(1, 2, 0)
    )
    flat = products.view(heads, batch, 2 * length * length)
    shifted = flat[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return shifted.reshape(heads, batch, length, 2 * length - 1)[..., :length]


class FastDebertaV2Encoder(DebertaV2Encoder):
    """DebertaV2Encoder whose layers run on the real tokens of the batch and the distances that occur."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_hidden_states: bool = True,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        return_dict: bool = True,
    ) -> BaseModelOutput | tuple:
        """The library's forward: hidden_states [batch, length, hidden], attention_mask [batch, length]."""
        if output_attentions or query_states is not None or relative_pos is not None or attention_mask.dim() != 2:
            logger.info("fast attention: this call asks for what only the library's attention gives")
            return super().forward(
                hidden_states,
                attention_mask,
                output_hidden_states,
                output_attentions,
                query_states,
                relative_pos,
                return_dict,
            )
        layout = layout_of(attention_mask, pack=not _is_traced())
        states = layout.pack(hidden_states)
        table, rows = self._distance_table(layout.length)
        all_states = (hidden_states,)
        for i, layer in enumerate(self.layer):
            states, _ = layer(states, layout, relative_pos=rows, rel_embeddings=table)
            if i == 0 and self.conv is not None:
                padded = self.conv(hidden_states, layout.unpack(states), attention_mask)
                states = layout.pack(padded)
            if output_hidden_states and i < len(self.layer) - 1:
                all_states += (layout.unpack(states),)
        output = layout.unpack(states)
        all_states = (*all_states, output) if output_hidden_states else None
        if not return_dict:
            return (output,) if all_states is None else (output, all_states)
        return BaseModelOutput(last_hidden_state=output, hidden_states=all_states)

    def _distance_table(self, length: int) -> tuple[Tensor | None, Tensor | None]:
        """(table rows [rows, hidden], row of each distance -length..length or None where they are in that order)."""
        table = self.get_rel_embedding()
        if table is None:
            return None, None
        buckets = self.position_buckets > 0
        span = self.position_buckets if buckets else self.max_relative_positions
        # under tracing the whole table is projected: constants, which the runtime folds into one stored tensor
        if not _is_exported() and length < span and (not buckets or length <= span // 2):
            return table[span - length : span + length + 1], None
        distances = torch.arange(-length, length + 1, device=table.device)
        if buckets:
            distances = make_log_bucket_position(distances, span, self.max_relative_positions).long()
        return table[: 2 * span], torch.clamp(distances + span, 0, 2 * span - 1)


def _is_exported() -> bool:
    """Whether a graph for another runtime is being written."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _is_traced() -> bool:
    """Whether this call becomes a graph, in which the number of real tokens must not show."""
    return _is_exported() or torch.compiler.is_compiling()
