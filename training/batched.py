"""Several samples of one size through the joint transformer at once, which runs one at a time.

Blocks work on rows and do not care whose they are; only attention and the rotary table do. So the rows of all
samples stand in one sequence, [all video | all audio | all text], and attention sorts them by sample.
Letters: B samples, C channels, T latent frames, h and w latent cells, L audio latents, N text rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..model.layers import Context
from ..model.sequence import SequenceLayout, rotary_angles
from ..model.transformer import JointTransformer
from ..shapes import PATCH


def velocities(
    network: JointTransformer, video: Tensor, audio: Tensor, text: Tensor, counts: Sequence[int] | Tensor
) -> tuple[Tensor, Tensor]:
    """``network(video[b], audio[b], text[b, :counts[b]])`` for every b.

    video [B, C, T, h, w], audio [B, C, L], text [B, N, D] -> velocities of video and audio in those shapes.
    """
    batch, _, frames, height, width = video.shape
    counts = torch.as_tensor(counts, device=video.device)
    layout = SequenceLayout(frames, height // PATCH, width // PATCH, audio.shape[2], text.shape[1])
    rows = (
        rearrange(video, "b c t (h p) (w q) -> (b t h w) (c p q)", p=PATCH, q=PATCH),
        audio.transpose(1, 2).flatten(0, 1),
        text.flatten(0, 1),
    )
    x = network.adapter(*rows)
    sizes = tuple(len(part) for part in rows)
    rope = _rotary_rows(network, layout, counts)
    context = Context(sizes, rope, (), _attention(layout.sizes, batch, counts))
    x = network.block(x, context)
    video_rows, audio_rows, _ = x.split(sizes)
    made = network.final_linear_video(network.final_norm_video(video_rows))
    made = rearrange(
        made,
        "(b t h w) (p q c) -> b c t (h p) (w q)",
        b=batch,
        t=frames,
        h=layout.height,
        w=layout.width,
        p=PATCH,
        q=PATCH,
    )
    sound = network.final_linear_audio(network.final_norm_audio(audio_rows))
    return made, sound.unflatten(0, (batch, -1)).transpose(1, 2)


def _rotary_rows(network: JointTransformer, layout: SequenceLayout, counts: Tensor) -> Tensor:
    """The table of all samples' rows in the batch's order; text is placed by each sample's own length."""
    style, bands = network.config.coordinates, network.adapter.rope.bands
    batch, (video, audio, longest) = len(counts), layout.sizes
    own, filling = [], torch.zeros(longest, 6 * len(bands), device=bands.device)
    filling[:, 3 * len(bands) :] = 1  # no rotation: these rows are not attended to
    tables = {}
    for count in sorted(set(counts.tolist())):
        single = SequenceLayout(layout.frames, layout.height, layout.width, audio, count)
        tables[count] = rotary_angles(single.coordinates(style).to(bands.device), bands)
    any_table = next(iter(tables.values()))
    for count in counts.tolist():
        own.append(torch.cat([tables[count][video + audio :], filling[count:]]))
    return torch.cat(
        [
            any_table[:video].repeat(batch, 1),
            any_table[video : video + audio].repeat(batch, 1),
            torch.cat(own),
        ]
    )


def _attention(sizes: Sequence[int], batch: int, counts: Tensor):
    """Softmax attention within each sample, blind to text rows that only fill up."""
    seen = torch.arange(sizes[2], device=counts.device)[None] < counts[:, None]
    others = torch.ones(batch, sizes[0] + sizes[1], dtype=torch.bool, device=counts.device)
    mask = None if bool(seen.all()) else torch.cat([others, seen], 1)[:, None, None, :]
    runs = [size * batch for size in sizes]

    def by_sample(rows: Tensor) -> Tensor:
        """[B*N.., H, E] in three runs -> [B, H, N, E]"""
        parts = (run.unflatten(0, (batch, -1)) for run in rows.split(runs))
        return torch.cat(list(parts), dim=1).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kind = torch.bfloat16 if torch.is_autocast_enabled(q.device.type) else q.dtype
        queries, keys, values = (by_sample(rows.to(kind)) for rows in (q, k, v))
        group = q.shape[1] // k.shape[1]
        keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
        # Spelled out: at these lengths torch's own kernel for the CPU takes six times as long backward.
        logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if mask is not None:
            logits = logits.masked_fill(~mask, -1e4)
        out = (logits.softmax(-1, dtype=kind) @ values).transpose(1, 2)
        parts = (part.flatten(0, 1) for part in out.split(list(sizes), dim=1))
        return torch.cat(list(parts)).to(q.dtype)

    return attend
