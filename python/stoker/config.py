"""What an engine is told when it starts. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "dummy"]

DTYPES = ("float32", "bfloat16", "float16")
EMBEDDED_MODEL = "stoker-demo"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The options of an engine, named as in vLLM where vLLM has them and as in SGLang where only SGLang does.

    Bad values raise ValueError in `__post_init__`; values that need the model (lengths, memory) are checked
    when the engine starts.
    """

    model: str
    """`stoker-demo`, a checkpoint folder, or a hub id."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; None: the model's."""
    skip_tokenizer_init: bool = False
    revision: str | None = None
    download_dir: str | None = None

    dtype: Dtype = "auto"
    """Type of weights and activations; auto: what the checkpoint says (float32 where it says nothing), but float32
    for a small half-precision model on a processor without half-precision arithmetic, where it is several times
    quicker."""
    load_format: LoadFormat = "auto"
    seed: int = 0
    """Of the seeds given to requests that bring none, and of dummy weights."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:N", or auto: cuda where torch sees one and stoker._cuda is built."""

    max_model_len: int | None = None
    """Prompt and output tokens of one request; None: what the model allows."""
    max_num_seqs: int | None = None
    """Requests that run at once; None: 64 on a CPU, 256 on a GPU, 1,024 on one with at least 70 GiB."""
    max_num_batched_tokens: int | None = None
    """Tokens a step; None: 512 on a CPU, 8192 on a GPU (at least max_num_seqs)."""
    block_size: int = 16
    num_kv_blocks: int | None = None
    """Blocks of the KV pool, the null block included; None: by memory."""
    kv_cache_memory: float | None = None
    """GiB for the KV pool; None: on a CPU at most 4 and at most a quarter of what is free, on a GPU what
    gpu_memory_utilization leaves. Never more than max_num_seqs requests of max_model_len could use."""
    gpu_memory_utilization: float = 0.9
    swap_space: float = 0.0
    """GiB of host memory for swapped requests; 0: preemption is by recompute."""
    preemption: str = "auto"
    """auto | retract | swap: what becomes of a request's KV when it steps aside. auto: whichever is expected to be
    quicker, recompute or a copy to host memory and back; swap: a copy, as long as swap_space has room."""
    kv_cache_dtype: str = "auto"
    """auto: the type of the activations; fp8: e4m3, with the checkpoint's scales where it has some, else 1.0."""

    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    batching: str = "continuous"
    """continuous | prefill_first | static"""
    schedule_policy: str = "fcfs"
    schedule_conservativeness: float = 1.0
    urgent_prefill_token_threshold: int = 256
    """Under the policies priority and deadline: prefill tokens a step for those that urgent requests outrank, while more
    of these are to be expected (one came within the last 1,024 steps); 0: no bound."""
    admission: str = "learned"
    """learned | guaranteed | greedy | peak: what is kept back for tokens still to come."""
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    """Further fields of SchedulerConfig, by name, as they are."""

    event_log: str | None = None
    """A file for what comes in and what is decided: `stoker trace replay` runs it again. It holds the prompts' and
    answers' tokens; `--redact` renumbers them."""
    overlap: bool = True
    """Schedule a step while the one before it runs (D = 1)."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    cuda_graph_sizes: tuple[int, ...] | None = None
    """Token buckets that are captured; None: powers of two and what lies between, up to 512."""
    quantization: str | None = None
    """fp8: linear layers in e4m3, a scale for each output feature, inputs quantised for each token. Checkpoints that are
    fp8 already are run so by themselves."""
    tensor_parallel_size: int = 1
    progress: bool = True
    """Show a bar while weights load."""

    def __post_init__(self) -> None:
        _require(bool(self.model), "model", self.model, "a checkpoint folder, a hub id, or 'stoker-demo'")
        _require(
            self.dtype in ("auto", *DTYPES), "dtype", self.dtype, "'auto', " + ", ".join(map(repr, DTYPES))
        )
        _require(
            self.load_format in ("auto", "safetensors", "dummy"),
            "load_format",
            self.load_format,
            "'auto', 'safetensors' or 'dummy'",
        )
        _require(
            self.device in ("auto", "cpu", "cuda") or self.device.startswith("cuda:"),
            "device",
            self.device,
            "'auto', 'cpu', 'cuda' or 'cuda:N'",
        )
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1, or None")
        _require(
            self.num_kv_blocks is None or self.num_kv_blocks >= 2,
            "num_kv_blocks",
            self.num_kv_blocks,
            "at least 2 (one is the null block), or None",
        )
        _require(
            self.block_size >= 8 and self.block_size % 8 == 0,
            "block_size",
            self.block_size,
            "a multiple of 8",
        )
        _require(
            self.kv_cache_memory is None or self.kv_cache_memory > 0,
            "kv_cache_memory",
            self.kv_cache_memory,
            "GiB above 0, or None",
        )
        _require(
            self.urgent_prefill_token_threshold >= 0,
            "urgent_prefill_token_threshold",
            self.urgent_prefill_token_threshold,
            "0 or more",
        )
        _require(self.swap_space >= 0, "swap_space", self.swap_space, "GiB, 0 or more")
        _require(
            self.preemption in ("auto", "retract", "swap"),
            "preemption",
            self.preemption,
            "'auto', 'retract' or 'swap'",
        )
        _require(
            self.preemption != "swap" or self.swap_space > 0,
            "preemption",
            self.preemption,
            "'auto' or 'retract' where swap_space is 0; give swap_space (GiB)",
        )
        _require(
            0 < self.gpu_memory_utilization <= 1,
            "gpu_memory_utilization",
            self.gpu_memory_utilization,
            "above 0 and at most 1",
        )
        if not self.enable_chunked_prefill:
            raise ValueError("enable_chunked_prefill=False: not built yet; only True is allowed")
        if self.tensor_parallel_size != 1:
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size}: not built yet; only 1 is allowed"
            )
        _require(self.quantization in (None, "fp8"), "quantization", self.quantization, "None or 'fp8'")
        _require(
            self.kv_cache_dtype in ("auto", "fp8", "fp8_e4m3"),
            "kv_cache_dtype",
            self.kv_cache_dtype,
            "'auto' or 'fp8' (e4m3)",
        )

    @classmethod
    def from_kwargs(cls, model: str, **kwargs: Any) -> EngineConfig:
        """As the constructor, but an option that does not exist is a ValueError that lists those that do."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r}; allowed are {', '.join(sorted(known - {'model'}))}"
            )
        return cls(model=model, **kwargs)


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
