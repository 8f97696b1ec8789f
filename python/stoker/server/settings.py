"""What a server is told: limits, keys, names. Plain data, handed from the command to every worker process."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; beyond it the answer is a 400 (413 for the body) that names the limit."""

    max_body_bytes: int = 8 << 20
    max_head_bytes: int = 64 << 10
    """Of request line and headers; beyond it the answer is a 431."""
    max_n: int = 64
    max_stop_strings: int = 16
    max_stop_chars: int = 1024
    max_bad_words: int = 256
    max_logit_bias: int = 1024
    max_logprobs: int = 20
    max_stop_token_ids: int = 128
    max_tools: int = 128
    max_prompts: int = 256
    """Prompts in one completions request."""
    max_messages: int = 4096
    max_schema_bytes: int = 64 << 10
    max_schema_depth: int = 32
    max_json_depth: int = 64
    body_timeout: float = 30.0
    """Seconds a client may take to send its request's head, and then its body."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One server. `api_keys` empty: no key is asked for."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    api_workers: int = 1
    cors_origins: tuple[str, ...] = ()
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    request_timeout: float | None = None
    """Seconds a request may take in all; then it ends: with HTTP 504, or with finish_reason "abort" where it streams already."""
    drain_timeout: float = 30.0
    """Seconds that SIGTERM leaves to running requests."""
    max_queue: int = 0
    """Waiting requests beyond which the answer is 503 with Retry-After; 0: no limit."""
    store_responses: int = 0
    """Responses of /v1/responses that are kept for previous_response_id; 0: none."""
    restart_engine: bool = False
    access_log: bool = True
    log_prompts: bool = False
    stall_timeout: float = 120.0
    """Seconds without a step, with requests to run, after which /ready says 503."""
    embeddings: str = "auto"
    """Whether /v1/embeddings is served: "auto" (what the checkpoint says), "last" (the last token's hidden row of any
    model), "off"."""
    answer_parser: str = "auto"
    """How reasoning and tool calls are marked: "auto" (by the chat template) or one of parsers.FORMATS."""
    otlp_endpoint: str | None = None
    """Where traces go (OTLP over HTTP); None: nowhere."""
    limits: Limits = field(default_factory=Limits)

    @property
    def address(self) -> str:
        """Where the server answers."""
        scheme = "https" if self.ssl_certfile else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"
