"""The transformer's forward pass written out in float64, for tests: loaded by conftest.py as ``definition``.

It shares no code with the pack: it reads weights by their names in a checkpoint, takes every token through its own
modality's matrices, and masks a dense softmax. ``case`` has the sizes: latent (T, h, w), audio (channels, latents),
text (tokens, features), channels, hidden, heads, kv_heads, head_dim, bands, window, coordinates and blocks.
Letters: N tokens, D hidden, H query heads, E head entries, B bands.
"""

import math

import torch


def literal_forward(case, weights, video, audio, text, product=None):
    """Both velocities and the largest inputs that the activations met, in float64.

    ``product(name, rows, matrix)`` stands in for ``rows @ matrix.T`` of a block's projections: rows [n, K] of one
    modality, matrix [M, K] its part of the weight.
    """
    product = product or (lambda name, rows, matrix: rows @ matrix.T)
    w = {name: tensor.double() for name, tensor in weights.items()}
    (frames, height, width), rows, columns = case.latent, case.latent[1] // 2, case.latent[2] // 2
    n_video, n_audio, n_text = frames * rows * columns, case.audio[1], case.text[0]
    total = n_video + n_audio + n_text
    modality = [0] * n_video + [1] * n_audio + [2] * n_text
    places = [(t, h, v) for t in range(frames) for h in range(rows) for v in range(columns)]

    def norm(x, weight, kinds):
        size = x.shape[-1]
        picked = weight.view(-1, size)[[kind if weight.numel() > size else 0 for kind in kinds]]
        picked = picked.view(len(kinds), *[1] * (x.ndim - 2), size)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + picked)

    def linear(x, name, outputs):
        matrices = w[name].view(-1, outputs, w[name].shape[1])
        if len(matrices) == 1:
            return product(name, x, matrices[0])
        runs = x.split([n_video, n_audio, n_text])
        return torch.cat([product(name, run, matrix) for run, matrix in zip(runs, matrices, strict=True)])

    # Embedding: features of a video token are c*4 + ph*2 + pw.
    tokens = []
    for t, h, v in places:
        patch = [
            video[c, t, 2 * h + p, 2 * v + q]
            for c in range(case.channels)
            for p in range(2)
            for q in range(2)
        ]
        tokens.append(torch.stack(patch).double())
    tokens += list(audio.T.double()) + list(text.double())
    names = ("video", "audio", "text")
    x = torch.stack(
        [
            w[f"adapter.{names[kind]}_embedder.weight"] @ token + w[f"adapter.{names[kind]}_embedder.bias"]
            for kind, token in zip(modality, tokens, strict=True)
        ]
    )

    # Angles: u = (position - centre) * (reference - 1)/(extent - 1) per axis, times 10000^(-k/B).
    angles = torch.zeros(total, 3 * case.bands, dtype=torch.float64)
    frequencies = [10000 ** (-k / case.bands) for k in range(case.bands)]
    for n in range(total):
        if modality[n] == 0:
            t, h, v = places[n]
            u = (t, h - (rows - 1) / 2, v - (columns - 1) / 2)
        elif modality[n] == 1:
            reference = (n_audio - 1) // 4 + 1 if case.coordinates == "v2" else frames
            u = ((n - n_video) * ((reference - 1) / (n_audio - 1) if n_audio > 1 else 1), 0, 0)
        elif case.coordinates == "v2":
            u = (0.0 if n_text > 1 else -1.0, 0, 0)
        else:
            u = ((n - n_video - n_audio) / (n_text - 1), 0, 0)
        angles[n] = torch.tensor([a * f for a in u for f in frequencies])
    sine, cosine = angles.sin()[:, None], angles.cos()[:, None]

    def rotate(x):
        half = 3 * case.bands
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], -1)

    near = torch.ones(total, total, dtype=torch.bool)
    for query in range(n_video):
        for key in range(n_video):
            near[query, key] = abs(places[query][0] - places[key][0]) <= case.window

    heads, depth, keys = case.heads, case.head_dim, case.kv_heads
    reach = {"above": 0.0, "below": 0.0}
    for index, spec in enumerate(case.blocks):
        prefix = f"block.layers.{index}"
        z = norm(x, w[f"{prefix}.attention.pre_norm.weight"], modality)
        y = linear(z, f"{prefix}.attention.linear_qkv.weight", heads * depth + 2 * keys * depth + heads)
        q = y[:, : heads * depth].reshape(total, heads, depth)
        k = y[:, heads * depth : (heads + keys) * depth].reshape(total, keys, depth)
        v = y[:, (heads + keys) * depth : (heads + 2 * keys) * depth].reshape(total, keys, depth)
        gate = y[:, (heads + 2 * keys) * depth :]
        q = rotate(norm(q, w[f"{prefix}.attention.q_norm.weight"], modality))
        k = rotate(norm(k, w[f"{prefix}.attention.k_norm.weight"], modality))
        out = torch.zeros(total, heads, depth, dtype=torch.float64)
        for head in range(heads):
            group = head * keys // heads
            logits = q[:, head] @ k[:, group].T / math.sqrt(depth)
            if spec.is_local:
                logits = logits.masked_fill(~near, -math.inf)
            weights_of_keys = logits.exp() / logits.exp().sum(-1, keepdim=True)
            out[:, head] = weights_of_keys @ v[:, group] / (1 + torch.exp(-gate[:, head : head + 1]))
        x = x + linear(out.reshape(total, -1), f"{prefix}.attention.linear_proj.weight", case.hidden)

        z = norm(x, w[f"{prefix}.mlp.pre_norm.weight"], modality)
        inner = spec.inner_size
        if spec.activation == "gelu7":
            up = linear(z, f"{prefix}.mlp.up_gate_proj.weight", inner)
            clamped = up.clamp(max=7)
            active = clamped / (1 + torch.exp(-1.702 * clamped))
        else:
            up = linear(z, f"{prefix}.mlp.up_gate_proj.weight", 2 * inner)
            g, l = up[:, 0::2].clamp(max=7), up[:, 1::2].clamp(-7, 7)  # noqa: E741
            active = g / (1 + torch.exp(-1.702 * g)) * (l + 1)
        reach = {"above": max(reach["above"], up.max().item()), "below": min(reach["below"], up.min().item())}
        x = x + linear(active, f"{prefix}.mlp.down_proj.weight", case.hidden)

    # Heads: features of a video token are (ph*2 + pw)*C + c, another order than the input's.
    flow = torch.zeros(case.channels, frames, height, width, dtype=torch.float64)
    ends = norm(x[:n_video], w["final_norm_video.weight"], [0] * n_video) @ w["final_linear_video.weight"].T
    for n, (t, h, v) in enumerate(places):
        for c in range(case.channels):
            for p in range(2):
                for r in range(2):
                    flow[c, t, 2 * h + p, 2 * v + r] = ends[n, (p * 2 + r) * case.channels + c]
    sound = x[n_video : n_video + n_audio]
    sound = norm(sound, w["final_norm_audio.weight"], [0] * n_audio) @ w["final_linear_audio.weight"].T
    return flow, sound.T, reach
