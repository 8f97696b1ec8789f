"""The rotary embedding's table of cosines and sines, with the scalings that stretch it to longer contexts."""

from __future__ import annotations

import math

import torch

from stoker.model_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, rotary_dim: int) -> torch.Tensor:
    """float32 [rotary_dim / 2]: radians a position (RoFormer, Su et al. 2021), scaled as `rope` says."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


def _llama3(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    longest = rope.original_max_position_embeddings / rope.low_freq_factor
    shortest = rope.original_max_position_embeddings / rope.high_freq_factor
    turns = rope.original_max_position_embeddings / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    scaled = frequencies / rope.factor
    blended = (1 - blend) * scaled + blend * frequencies
    result = torch.where(wavelengths > longest, scaled, frequencies)
    between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(between, blended, result)


def cos_sin_table(rope: RopeConfig, head_dim: int, max_position: int, device: torch.device) -> torch.Tensor:
    """float32 [max_position, rotary_dim]: cos half, then sin half."""
    rotary_dim = int(head_dim * rope.partial_rotary_factor)
    positions = torch.arange(max_position, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, rotary_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)
