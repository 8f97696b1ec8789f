"""Uses an installed stoker as a new user would: the scheduler by itself, then the embedded model."""

import sys
import time

start = time.perf_counter()
import stoker  # noqa: E402

took = time.perf_counter() - start
if "torch" in sys.modules:
    raise SystemExit("import stoker must not import torch")

from stoker import SamplingParams  # noqa: E402
from stoker.scheduler import Req, Scheduler, SchedulerConfig  # noqa: E402

scheduler = Scheduler(
    SchedulerConfig(num_blocks=64, block_size=16, max_num_seqs=4, max_num_batched_tokens=64)
)
scheduler.add(Req("a", origin_input_ids=[1, 2, 3], sampling_params=SamplingParams(max_tokens=4)))
steps = 0
while (batch := scheduler.schedule()) is not None:
    scheduler.commit(batch, [7] * batch.num_sampled_rows)
    steps += 1
if steps != 4:
    raise SystemExit(f"expected 4 steps, saw {steps}")
print(
    f"stoker {stoker.__version__} on Python {sys.version.split()[0]}: imported in {took:.3f} s, the scheduler runs"
)

if "--scheduler-only" not in sys.argv:
    from stoker import LLM

    llm = LLM("stoker-demo")
    outs = llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    print(repr(outs[0].outputs[0].text))
    if not outs[0].outputs[0].token_ids:
        raise SystemExit("the embedded model gave no token")
