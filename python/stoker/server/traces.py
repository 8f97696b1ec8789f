"""OpenTelemetry traces, when an endpoint is configured: a span a request, with its time in the queue, to the first token and to
the end as children. Needs the extra `otel`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.server.answers import Answers


class Traces:
    """Sends spans to `endpoint` (OTLP over HTTP, the whole URL); without one does nothing. ValueError without the packages."""

    def __init__(self, endpoint: str | None) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        if endpoint is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ValueError(f"{error.name} not installed; traces need: pip install 'stoker[otel]'") from None
        provider = TracerProvider(resource=Resource.create({"service.name": "stoker"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._provider = provider
        self._tracer = provider.get_tracer("stoker.server")

    @property
    def on(self) -> bool:
        """Whether spans are sent."""
        return self._tracer is not None

    def request(
        self, name: str, status: int, began: float, headers: dict[str, str], jobs: list[Answers]
    ) -> None:
        """An HTTP request that has ended. `began` is on `time.monotonic()`'s clock; a `traceparent` header makes its span a
        child of the caller's."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset = time.time() - time.monotonic()

        def at(moment: float) -> int:
            return int((moment + offset) * 1e9)

        parent = TraceContextTextMapPropagator().extract(headers)
        attributes: dict[str, Any] = {"http.response.status_code": status, "gen_ai.system": "stoker"}
        if jobs:
            attributes |= {
                "gen_ai.response.id": jobs[0].rid,
                "gen_ai.usage.input_tokens": sum(job.num_prompt_tokens for job in jobs),
                "gen_ai.usage.output_tokens": sum(job.num_output_tokens for job in jobs),
                "gen_ai.response.finish_reasons": [why for job in jobs for why in job.finish_reasons],
                "stoker.cached_tokens": sum(job.num_cached_tokens for job in jobs),
            }
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=at(began))
        from opentelemetry.trace import set_span_in_context

        inside = set_span_in_context(span)
        for job in jobs:
            for account in job.accounts:
                moments = [account.arrival_time, account.first_scheduled_time, account.first_token_time]
                for part, (begin, end) in zip(
                    ("queue", "prefill", "decode"),
                    zip(moments, [*moments[1:], account.finished_time], strict=True),
                    strict=True,
                ):
                    if begin > 0 and end > 0:
                        child = self._tracer.start_span(part, inside, start_time=at(begin))
                        child.end(at(end))
        span.end()

    def close(self) -> None:
        """Sends what is left."""
        if self._provider is not None:
            self._provider.shutdown()
