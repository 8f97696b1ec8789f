"""Looking at what the scheduler did: traces of runs, spans, pictures. Imports no engine; matplotlib only for pictures.

from stoker.viz import Trace, recording
with recording(llm.engine.loop) as recorded: ...
recorded.trace.save("run.jsonl")
"""

from stoker.viz.recorder import recording
from stoker.viz.spans import Phase, Span, req_spans, seat_spans
from stoker.viz.trace import Change, ReqTrace, Row, Step, Trace

__all__ = [
    "Change",
    "Phase",
    "ReqTrace",
    "Row",
    "Span",
    "Step",
    "Trace",
    "recording",
    "req_spans",
    "seat_spans",
]
