"""Linear layers in fp8 (e4m3): a weight with a scale for each output feature, inputs quantised as they come with a scale for
each token. The head, the embedding and the norms stay in the model's type.
"""

from __future__ import annotations

import torch

from stoker.ops import linear, quantize_rows, silu_and_mul

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
_FEW_ROWS = 16
"""Up to here our own product is the quicker, as in linear.few_rows."""


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[F, in] of any floating type -> e4m3 [F, in] and float32 scales [F]: max |row| / 448."""
    wide = weight.float()
    scale = wide.abs().amax(1) / LARGEST
    scale[scale == 0] = 1.0
    return (wide / scale[:, None]).clamp_(-LARGEST, LARGEST).to(FP8), scale


class Fp8Room:
    """Where a layer's input stands quantised: one room, used by one layer after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._width = 0
        self._x = torch.empty(0)
        self._scale = torch.empty(0)

    def widen(self, width: int) -> None:
        """A layer has inputs of this width."""
        self._width = max(self._width, width)

    def reserve(self, max_tokens: int) -> None:
        """Takes the memory, before the first step: captured graphs keep the address."""
        self._x = torch.zeros(max_tokens * self._width, dtype=torch.uint8, device=self._device).view(FP8)
        self._scale = torch.ones(max_tokens, dtype=torch.float32, device=self._device)

    def quantized(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, in] as e4m3, and the scales [T]."""
        tokens, width = x.shape
        rows, scale = self._x[: tokens * width].view(tokens, width), self._scale[:tokens]
        quantize_rows(rows, scale, x)
        return rows, scale


class Fp8Weight:
    """out = x @ weight.T + bias with x [T, in] quantised by rows. `weight` e4m3 [F, in], `scale` float32 [F]."""

    def __init__(self, features: int, in_features: int, room: Fp8Room, device: torch.device) -> None:
        self.weight = torch.zeros(features, in_features, dtype=torch.uint8, device=device).view(FP8)
        self.scale = torch.ones(features, dtype=torch.float32, device=device)
        self._room = room
        room.widen(in_features)
        # What torch's product takes; the rest, and CPUs, by ours.
        self._most_rows = (
            _FEW_ROWS if device.type == "cuda" and not (features | in_features) & 15 else 1 << 30
        )

    def __call__(self, out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        rows, scale = self._room.quantized(x)
        if len(x) <= self._most_rows:
            linear(out, rows, self.weight, bias, x_scale=scale, weight_scale=self.scale)
        else:
            self._product(out, rows, scale)
            if bias is not None:
                out.add_(bias)

    def gated(self, out: torch.Tensor, room: torch.Tensor, x: torch.Tensor) -> None:
        """silu_and_mul of the product, in one kernel for few rows, else by way of `room`."""
        rows, scale = self._room.quantized(x)
        if len(x) <= self._most_rows:
            linear(out, rows, self.weight, x_scale=scale, weight_scale=self.scale, silu_and_mul=True)
        else:
            self._product(room, rows, scale)
            silu_and_mul(out, room)

    def _product(self, out: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor) -> None:
        torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale[:, None],
            scale_b=self.scale[None],
            out_dtype=out.dtype,
            use_fast_accum=True,
            out=out,
        )


class Fp8Linear:
    """As `Linear`, over an Fp8Weight."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Fp8Weight, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """x [T, in] -> out [T, out features]."""
        self.weight(out, x, self.bias)

    def silu_and_mul(self, out: torch.Tensor, x: torch.Tensor, room: torch.Tensor) -> None:
        """out [T, features / 2] = silu_and_mul of x's product, by way of `room` [T, features] or in one kernel."""
        if self.bias is None:
            self.weight.gated(out, room, x)
        else:
            self.weight(room, x, self.bias)
            silu_and_mul(out, room)


class Fp8Rows:
    """Rows of an Fp8Weight that one tensor of a checkpoint fills."""

    def __init__(self, owner: Fp8Weight, begin: int, end: int) -> None:
        self._weight, self._scale = owner.weight[begin:end], owner.scale[begin:end]
        self.shape = self._weight.shape

    def copy_(self, tensor: torch.Tensor) -> None:
        """Quantises a tensor of a floating type."""
        weight, scale = quantized(tensor.to(self._weight.device))
        # Through bytes: not every device copies e4m3.
        self._weight.view(torch.uint8).copy_(weight.view(torch.uint8))
        self._scale.copy_(scale)

    def take(self, tensor: torch.Tensor, scale: torch.Tensor) -> None:
        """An e4m3 tensor as it is, with a scale for all of it or one for each row."""
        self._weight.view(torch.uint8).copy_(tensor.view(torch.uint8))
        self._scale.copy_(scale.float().reshape(-1).expand(len(self._scale)))


def widened(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """An e4m3 tensor [F, in] times its scales, in float32: one for all, one a row ([F] or [F, 1]), or one a block of
    128 x 128 ([F / 128, in / 128], rounded up).
    """
    wide, scale = tensor.float(), scale.float()
    if scale.numel() == 1:
        return wide * scale.reshape(())
    if scale.numel() == len(wide):
        return wide * scale.reshape(-1, 1)
    features, columns = wide.shape
    blocks = (-(-features // 128), -(-columns // 128))
    if tuple(scale.shape) != blocks:
        raise ValueError(
            f"scales of shape {list(scale.shape)} for a weight of {list(wide.shape)}; allowed are one, one a row, or "
            f"one a block of 128 x 128, {list(blocks)}"
        )
    return wide * scale.repeat_interleave(128, 0)[:features].repeat_interleave(128, 1)[:, :columns]
