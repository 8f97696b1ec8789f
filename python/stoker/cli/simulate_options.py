"""The options of `stoker simulate`, and the Scenario that they make."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.config import EMBEDDED_MODEL
from stoker.model_config import ModelConfig

if TYPE_CHECKING:
    from stoker.sim.run import Slo
    from stoker.sim.scenario import Scenario

# Sizes from the checkpoints' config.json, for people without the checkpoint at hand.
_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip
# fmt: off
KNOWN_MODELS: dict[str, tuple[Any, ...]] = {
    "qwen3-0.6b":    (1024,  3072, 28, 16,  8, 128, 151936,  40960, True),
    "qwen3-8b":      (4096, 12288, 36, 32,  8, 128, 151936,  40960, False),
    "llama-3.1-8b":  (4096, 14336, 32, 32,  8, 128, 128256, 131072, False),
    "mistral-7b":    (4096, 14336, 32, 32,  8, 128,  32768,  32768, False),
    "llama-3.1-70b": (8192, 28672, 80, 64,  8, 128, 128256, 131072, False),
}
# fmt: on
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


def _group(parser: argparse.ArgumentParser, title: str) -> Any:
    """What is not given is not there: a default lives in Scenario only."""
    return parser.add_argument_group(title, argument_default=argparse.SUPPRESS)


def add_scenario_arguments(parser: argparse.ArgumentParser) -> None:
    """What comes, what serves it, and what counts as good."""
    comes = _group(parser, "what comes")
    comes.add_argument("--trace", metavar="PATH", help="Mooncake's JSONL or Azure's CSV")
    comes.add_argument("--speed", type=float, metavar="X", help="times the trace's rate")
    comes.add_argument("--rate", type=float, metavar="R", help="requests a second (a trace is brought to it)")
    comes.add_argument(
        "--users", type=int, metavar="N", help="closed loop: so many users, each waits for its answer"
    )
    comes.add_argument("--think", type=float, metavar="S", help="seconds that a user thinks, exponential")
    comes.add_argument(
        "--burstiness",
        type=float,
        metavar="K",
        help="shape of the gaps' gamma distribution; 1: Poisson, below: bursts",
    )
    comes.add_argument(
        "--num-reqs", type=int, metavar="N", help="how many (default: 1000, or the whole trace)"
    )
    comes.add_argument(
        "--prompt-len",
        metavar="LENGTHS",
        help="N, uniform:LOW:HIGH, loguniform:LOW:HIGH, lognormal:MEDIAN:SIGMA[:MOST] or exponential:MEAN[:MOST] (default: 512)",
    )
    comes.add_argument("--output-len", metavar="LENGTHS", help="the same, of answers (default: 128)")
    comes.add_argument(
        "--prefix-len", type=int, metavar="N", help="tokens before each prompt that its group shares"
    )
    comes.add_argument("--prefix-groups", type=int, metavar="N", help="how many groups (default: 1)")
    comes.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="what requests ask for, where their answer is shorter (default: its length)",
    )
    comes.add_argument(
        "--skip-impossible", action="store_true", help="leave out requests that the engine would refuse"
    )
    comes.add_argument(
        "--seed", type=int, metavar="N", help="equal seeds give equal results, to the byte (default: 0)"
    )
    serves = _group(parser, "what serves it")
    serves.add_argument(
        "-m",
        "--model",
        metavar="CONFIG",
        default=None,
        help=f"config.json, a checkpoint folder, {EMBEDDED_MODEL}, {', '.join(KNOWN_MODELS)}",
    )
    serves.add_argument(
        "--device", metavar="NAME", help="h200 (default), h100, a100, l40s, 4090, cpu, or a .json file"
    )
    serves.add_argument(
        "--cost", metavar="FILE", help="a cost model from `stoker simulate fit`, instead of model and device"
    )
    serves.add_argument(
        "--dtype", choices=tuple(_BYTES), default="bfloat16", help="of weights (default: bfloat16)"
    )
    serves.add_argument(
        "--kv-dtype",
        choices=tuple(_BYTES),
        default=None,
        help="of KV (default: that of weights, bfloat16 for fp8)",
    )
    serves.add_argument(
        "--gpu-memory-utilization",
        type=float,
        metavar="X",
        help="share of the device's memory (default: 0.9)",
    )
    for name in ("num-kv-blocks", "block-size", "max-num-seqs", "max-num-batched-tokens", "max-model-len"):
        serves.add_argument(f"--{name}", type=int, metavar="N")
    serves.add_argument(
        "--no-overlap", dest="overlap", action="store_false", help="schedule a step after the one before"
    )
    for name in ("schedule-policy", "batching", "admission"):
        serves.add_argument(f"--{name}", metavar="NAME")
    serves.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    serves.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any further field of SchedulerConfig or FleetConfig",
    )
    fleet = _group(parser, "a fleet")
    fleet.add_argument("--replicas", type=int, metavar="N", help="engines behind a router (default: 1)")
    fleet.add_argument(
        "--routing",
        metavar="NAME",
        help="round_robin (default), random, least_loaded, two_choices, prefix, session",
    )
    fleet.add_argument(
        "--mtbf",
        dest="mean_time_between_failures",
        type=float,
        metavar="S",
        help="mean seconds between two failures of a replica",
    )
    fleet.add_argument(
        "--repair-time", type=float, metavar="S", help="seconds until it is back (default: 60)"
    )
    fleet.add_argument("--slow-share", type=float, metavar="X", help="share of replicas that are slow nodes")
    fleet.add_argument("--slow-factor", type=float, metavar="X", help="times as long their steps take")
    fleet.add_argument("--autoscale", metavar="MIN:MAX", default=None, help="scale between so many replicas")
    fleet.add_argument(
        "--target-load",
        type=float,
        metavar="N",
        help="unanswered requests a replica that scaling aims at (default: 32)",
    )
    fleet.add_argument(
        "--startup-time", type=float, metavar="S", help="seconds until a new replica serves (default: 30)"
    )
    good = parser.add_argument_group("what is good")
    good.add_argument("--slo-ttft", type=float, metavar="S", help="seconds to the first token")
    good.add_argument(
        "--slo-itl", type=float, metavar="S", help="seconds between two tokens, mean of a request"
    )
    good.add_argument("--slo-e2e", type=float, metavar="S", help="seconds to the last token")


_FLEET = (
    "routing",
    "mean_time_between_failures",
    "repair_time",
    "slow_share",
    "slow_factor",
    "target_load",
    "startup_time",
)
_SCHEDULER = ("schedule_policy", "batching", "admission", "enable_prefix_caching")


def scenario_of(args: argparse.Namespace) -> Scenario:
    """Raises ValueError for what is missing or does not fit together."""
    from stoker.sim.cost import Device
    from stoker.sim.scenario import Scenario

    given = vars(args)
    fields = {
        name: given[name] for name in Scenario.__dataclass_fields__ if name in given and name != "model"
    }
    model = None if args.model is None else read_model(args.model)
    defaults: dict[str, Any] = {}
    if "cost" in given:
        defaults = _recorded_engine(given["cost"])
    elif model is None:
        raise ValueError(
            f"say what serves: --model ({EMBEDDED_MODEL}, a config.json, {', '.join(KNOWN_MODELS)}) or --cost"
        )
    else:
        Device.find(given.get("device", "h200"))
    kv = args.kv_dtype or ("bfloat16" if args.dtype == "fp8" else args.dtype)
    scenario = Scenario(
        **{
            **defaults,
            "model": model,
            "model_len": model.max_position_embeddings if model else 0,
            "element_bytes": _BYTES[args.dtype],
            "kv_element_bytes": _BYTES[kv],
            **fields,
        }
    )
    for name in (*_SCHEDULER, *_FLEET):
        if name in given:
            scenario = scenario.vary(name, given[name])
    if "replicas" in given:
        scenario = scenario.vary("num_replicas", args.replicas)
    if args.autoscale:
        low, high = _range(args.autoscale)
        scenario = scenario.vary("min_replicas", low).vary("max_replicas", high)
        if "replicas" not in given:
            scenario = scenario.vary("num_replicas", low)
    for text in args.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option {text}: must be NAME=VALUE")
        scenario = scenario.vary(name.replace("-", "_"), value_of(value))
    return scenario


def slo_of(args: argparse.Namespace) -> Slo:
    """Raises ValueError for a limit that nothing can keep."""
    from stoker.sim.run import Slo

    for name in ("slo_ttft", "slo_itl", "slo_e2e"):
        limit = getattr(args, name)
        if limit is not None and not limit > 0:
            raise ValueError(f"--{name.replace('_', '-')} {limit}: must be above 0")
    return Slo(args.slo_ttft, args.slo_itl, args.slo_e2e)


def read_model(name: str) -> ModelConfig:
    """The sizes of a model. Raises ValueError that says what is allowed."""
    if name in KNOWN_MODELS:
        raw = dict(zip(_KEYS, KNOWN_MODELS[name], strict=True))
        return ModelConfig.from_dict({"architectures": ["LlamaForCausalLM"], **raw}, source=name)
    if name == EMBEDDED_MODEL:
        import stoker.demo_model

        return ModelConfig.from_folder(Path(stoker.demo_model.__file__).parent / "checkpoint")
    path = Path(name)
    if path.suffix == ".json":
        from stoker.model_config import read_json

        return ModelConfig.from_dict(read_json(path), source=name)
    if path.is_dir():
        return ModelConfig.from_folder(path)
    raise ValueError(
        f"--model {name}: no such file or folder; allowed are a config.json, a checkpoint folder, {EMBEDDED_MODEL}, "
        f"{', '.join(KNOWN_MODELS)}"
    )


def value_of(text: str) -> Any:
    """true, false, a number, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def _recorded_engine(path: str) -> dict[str, Any]:
    """How the engine was set up that the cost model was fitted to: the defaults of its simulation."""
    from stoker.model_config import read_json

    engine = read_json(Path(path)).get("engine", {})
    known = ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
    out = {name: engine[name] for name in known if name in engine}
    if "num_blocks" in engine:
        out["num_kv_blocks"] = engine["num_blocks"]
    return out


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    try:
        return int(low), int(high)
    except ValueError:
        raise ValueError(f"--autoscale {text}: must be MIN:MAX, two whole numbers") from None
