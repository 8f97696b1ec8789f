"""Fills a model's parameters: from safetensors files, straight into their (fused) places, or with dummy
values. No pickle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from stoker.engine.checkpoint import weight_files
from stoker.layers.fp8 import Fp8Rows, quantized, widened
from stoker.layers.parameters import ParameterStore, Target

_HARMLESS = ("rotary_emb.inv_freq",)
_DUMMY_STD = 0.02
_FP8_TYPES = (torch.float8_e4m3fn,)
_SCALES = ("_scale", "_scale_inv")
# Where checkpoints keep the scales of an attention layer's cache.
_KV_SCALES = (".{0}_scale", ".attn.{0}_scale", ".{0}_proj.{0}_scale", ".{0}_proj.output_scale")


def load(store: ParameterStore, folder: Path, progress: bool = False) -> None:
    """Reads every tensor of the checkpoint into its place, converting the type on the way.

    ValueError that names the file and the tensor for a tensor that is missing, misshapen or unknown, and
    for a file that is truncated or broken.
    """
    files = weight_files(folder)
    missing = set(store.targets)
    scales = _scales(files)
    _tell_kv_scales(store, scales)
    with _bar(len(missing), progress) as advance:
        for path in files:
            for name, tensor in _tensors(path):
                if name in scales:
                    continue
                target = store.targets.get(name)
                if target is None:
                    _check_unknown(store, name, path)
                    continue
                if target.shape != tensor.shape:
                    raise ValueError(
                        f"{path}: tensor {name!r} has shape {list(tensor.shape)}, but config.json asks for "
                        f"{list(target.shape)}"
                    )
                if not tensor.is_floating_point():
                    raise ValueError(
                        f"{path}: tensor {name!r} is of type {tensor.dtype}; a floating type is needed"
                    )
                if tensor.dtype in _FP8_TYPES:
                    _fill_from_fp8(target, tensor, name, path, scales)
                else:
                    target.copy_(tensor)
                missing.discard(name)
                advance()
    if missing:
        some = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise ValueError(f"{folder}: {len(missing)} of {len(store.targets)} tensors are missing: {some}")


def _scales(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint that are scales of others."""
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with _opened(path) as file:
            found.update({name: file.get_tensor(name) for name in file.keys() if name.endswith(_SCALES)})  # noqa: SIM118
    return found


def _fill_from_fp8(
    target: Target, tensor: torch.Tensor, name: str, path: Path, scales: dict[str, torch.Tensor]
) -> None:
    """From an e4m3 tensor and its scales, to fp8 rows or to the model's type. Scales of blocks become one a row."""
    scale = scales.get(f"{name}_scale", scales.get(f"{name}_scale_inv"))
    if scale is None:
        raise ValueError(f"{path}: tensor {name!r} is fp8, but the checkpoint has no {name + '_scale'!r}")
    if isinstance(target, Fp8Rows) and scale.numel() in (1, len(tensor)):
        target.take(tensor, scale)
        return
    try:
        target.copy_(widened(tensor, scale))
    except ValueError as error:
        raise ValueError(f"{path}: tensor {name!r}: {error}") from None


def _tell_kv_scales(store: ParameterStore, scales: dict[str, torch.Tensor]) -> None:
    for prefix, layer in store.kv_scales.items():
        for which in "kv":
            names = [prefix + form.format(which) for form in _KV_SCALES]
            found = next((scales[name] for name in names if name in scales), None)
            if found is not None:
                setattr(layer, which, float(found.float().max()))
                layer.given = True


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def _check_unknown(store: ParameterStore, name: str, path: Path) -> None:
    """A tensor without a place would be left out of the sums silently; only what is known to be spare may
    be.
    """
    tied_head = name == "lm_head.weight" and "lm_head.weight" not in store.targets
    if not tied_head and not name.endswith(_HARMLESS):
        raise ValueError(
            f"{path}: tensor {name!r} has no place in this architecture as config.json describes it"
        )


def fill_dummy(store: ParameterStore, seed: int) -> None:
    """Random weights of standard deviation 0.02 (norms: ones) that depend on `seed` only.

    One stretch of random numbers is laid over all weights, begun elsewhere for each: at the memory's speed.
    """
    generator = torch.Generator().manual_seed(seed)
    period = 999_983  # a prime, so that rows of no usual width repeat
    stretch = torch.empty(2 * period).normal_(0.0, _DUMMY_STD, generator=generator)
    stretch[period:] = stretch[:period]
    stretch = stretch.to(device=store.device, dtype=store.dtype)
    whole = [(w.weight, True) for w in store.fp8_weights] + [(w, False) for w in store.weights]
    begins = torch.randint(period, (len(whole),), generator=generator).tolist()
    eighth, scale = quantized(stretch[None])
    for (tensor, is_fp8), begin in zip(whole, begins, strict=True):
        # Bytes: not every device copies e4m3.
        flat = tensor.view(torch.uint8).view(-1) if is_fp8 else tensor.view(-1)
        first = (eighth.view(torch.uint8)[0] if is_fp8 else stretch)[begin : begin + period]
        done = min(period, flat.numel())
        flat[:done] = first[:done]
        while done < flat.numel():  # a multiple of the period so far: what stands there may be laid again
            more = min(done, flat.numel() - done)
            flat[done : done + more] = flat[:more]
            done += more
    for weight in store.fp8_weights:
        weight.scale.fill_(float(scale))
    for tensor in store.ones:
        tensor.fill_(1.0)


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr where that is a terminal; yields what moves it on by one."""
    if not show or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading weights", total=total)
        yield lambda: progress.advance(task)
