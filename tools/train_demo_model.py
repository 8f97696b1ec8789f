#!/usr/bin/env python3
"""Trains the embedded demo model from nothing: text, tokenizer, weights, and a check of what it learnt.

    python tools/train_demo_model.py --minutes 4 --out python/stoker/demo_model/checkpoint

needs one CUDA GPU and a dozen cores that make the text meanwhile; docs/demo_model.md has the figures. `--smoke` is a
tiny run on the CPU that proves the pipeline and teaches nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]

import torch  # noqa: E402
from demo_model.corpus import RECALL, RowFactory  # noqa: E402
from demo_model.evaluate import answer, fresh_prompts, greedy  # noqa: E402
from demo_model.model import DemoModel, Shape, run_block, save_model  # noqa: E402
from demo_model.tokenizer import save_tokenizer, train_tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

ANSWER_WEIGHT, CONTEXT_WEIGHT = 4.0, 0.15
# Row length, share of the training time, rows to make, rows a step: short distances first, then long ones.
PHASES = (
    (256, 0.30, 400_000, 256),
    (512, 0.20, 200_000, 128),
    (1088, 0.38, 150_000, 96),
    (2048, 0.12, 20_000, 48),
)
SMOKE_PHASES = ((96, 0.7, 4_000, 16), (192, 0.3, 500, 8))


@dataclass(frozen=True)
class Marks:
    """The token ids after which an answer begins: the assistant's mark, or "Answer" and ":"."""

    assistant: int
    answer: int
    colon: int


def loss_weights(tokens: Tensor, kinds: Tensor, marks: Marks) -> Tensor:
    """How much each next-token loss counts. tokens: [rows, length + 1]; the result: [rows, length].

    Stories count evenly. In recall rows the answers count most: a position lies in an answer if the last mark that
    begins an answer came after the last end token.
    """
    inputs = tokens[:, :-1]
    position = torch.arange(inputs.shape[1], device=tokens.device).expand_as(inputs)
    never = torch.full_like(position, -1)
    begins = (inputs == marks.colon) & (inputs.roll(1, dims=1) == marks.answer)
    begins |= inputs == marks.assistant
    begun = torch.where(begins, position, never).cummax(dim=1).values
    ended = torch.where(inputs == 0, position, never).cummax(dim=1).values
    weights = torch.where(begun > ended, ANSWER_WEIGHT, CONTEXT_WEIGHT)
    return torch.where(kinds[:, None] == RECALL, weights, torch.ones_like(weights))


def phase_at(phases: tuple[tuple[int, float, int, int], ...], progress: float) -> tuple[int, int]:
    """Row length and rows a step when `progress` (0 to 1) of the time is over."""
    border = 0.0
    for length, share, _, rows in phases:
        border += share
        if progress < border:
            return length, rows
    return phases[-1][0], phases[-1][3]


class Pool:
    """The rows of each length that have arrived so far, on the device; fresh rows are served before used ones."""

    def __init__(self, factory: RowFactory, device: torch.device) -> None:
        self.rows: dict[int, list[Tensor]] = {}
        self.served: dict[int, int] = {}
        self._factory, self._device = factory, device

    def collect(self, *, wait: bool = False) -> None:
        """Take what the workers have ready; with `wait`, at least one chunk."""
        for length, rows in self._factory.chunks(wait=wait):
            self.rows.setdefault(length, []).append(torch.from_numpy(rows.astype("int16")).to(self._device))

    def batch(self, length: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows [count, length + 1] and their kinds [count]."""
        while length not in self.rows or len(self.rows[length]) * 64 < count:
            self.collect(wait=True)
        chunks = self.rows[length]
        per_chunk = chunks[0].shape[0]
        start = self.served.get(length, 0)
        if (start + count) > per_chunk * len(chunks):  # all used: begin again, in a new order
            order = torch.randperm(len(chunks), generator=generator).tolist()
            self.rows[length] = chunks = [chunks[i] for i in order]
            start = 0
        first, last = start // per_chunk, -(-(start + count) // per_chunk)
        rows = torch.cat(chunks[first:last])[start - first * per_chunk :][:count].long()
        self.served[length] = start + count
        return rows[:, :-1], rows[:, -1]


def train(args: argparse.Namespace, tokenizer_file: Path) -> DemoModel:
    """The whole training, boxed by `args.minutes`; the weights of the result are rounded to bf16."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    device = torch.device("cpu" if args.smoke else "cuda")
    phases = SMOKE_PHASES if args.smoke else PHASES
    quotas = {length: int(rows * args.rows) for length, _, rows, _ in phases}
    pool = Pool(RowFactory(str(tokenizer_file), args.seed, args.workers, quotas, args.recall_share), device)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    shape = Shape(vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=args.layers)
    if args.smoke:
        shape = Shape(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=128, num_hidden_layers=2, intermediate_size=256
        )
    model = DemoModel(shape).to(device)
    if args.resume:
        model.load_state_dict(
            {k.removeprefix("model."): v for k, v in load_file(args.resume / "model.safetensors").items()}
        )
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {shape}", flush=True)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    scales = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": scales, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        eps=1e-9,
        fused=not args.smoke,
    )
    marks = Marks(tokenizer.token_to_id("<|assistant|>"), *tokenizer.encode("\nAnswer:").ids[-2:])

    def head(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        logits = hidden @ embedding.to(hidden.dtype).T
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(
            targets
        )

    run, run_head = run_block, head

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return run_head(model(inputs, run), model.embed_tokens.weight, targets)

    if not args.smoke and not args.no_compile:
        begun = time.monotonic()
        try:
            run, run_head = torch.compile(run_block, dynamic=False), torch.compile(head, dynamic=False)
            for length, _, _, rows in phases:
                inputs = torch.zeros(rows, length, dtype=torch.long, device=device)
                losses(inputs, inputs).mean().backward()
                optimizer.zero_grad(set_to_none=True)
                pool.collect()
                print(f"compiled for length {length}: {time.monotonic() - begun:.0f} s", flush=True)
        except Exception as error:  # training goes on, only slower
            run, run_head = run_block, head
            print(f"no torch.compile: {type(error).__name__}: {str(error)[:500]}", flush=True)

    prompts = fresh_prompts(
        tokenizer, args.seed + 12345, 20 if args.smoke else 200, 100 if args.smoke else 1000
    )
    start = last_print = last_eval = time.monotonic()
    seconds = args.minutes * 60
    step = tokens_seen = 0
    while (progress := (time.monotonic() - start) / seconds) < 1.0:
        length, rows = phase_at(phases, progress)
        pool.collect()
        tokens, kinds = pool.batch(length, rows, generator)
        warm = min(1.0, (step + 1) / args.warmup)
        lr = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        weights = loss_weights(tokens, kinds, marks)
        each = losses(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss = (each * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens_seen += tokens[:, 1:].numel()
        if not args.smoke:
            torch.cuda.synchronize() if step % 20 == 0 else None
        now = time.monotonic()
        if now - last_print > args.print_every:
            last_print = now
            in_answer = weights == ANSWER_WEIGHT
            in_story = weights == 1.0
            print(
                f"{now - start:5.0f} s step {step} length {length} {tokens_seen / 1e6:.0f} Mtok lr {lr:.1e} "
                f"loss {loss.item():.3f} answers {each[in_answer].mean().item():.4f} stories {each[in_story].mean().item():.3f} "
                f"rows { ({k: sum(c.shape[0] for c in v) for k, v in pool.rows.items()}) }",
                flush=True,
            )
        if now - last_eval > args.eval_every:
            last_eval = time.monotonic()
            some = prompts[::4]
            print(f"{now - start:5.0f} s {answer(model, tokenizer, some).summary(some)}", flush=True)
    pool._factory.close()
    print(
        f"trained {step} steps, {tokens_seen / 1e6:.0f} M tokens in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--minutes", type=float, default=4.0, help="how long to train (default: 4)")
    parser.add_argument("--resume", type=Path, help="a folder written earlier, whose weights to begin with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps (default: 200)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=2816)
    parser.add_argument("--rows", type=float, default=1.0, help="factor on the number of rows to make")
    parser.add_argument(
        "--recall-share", type=float, default=0.7, help="share of recall rows, the rest are stories"
    )
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--print-every", type=float, default=10.0)
    parser.add_argument("--eval-every", type=float, default=30.0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to prove the pipeline")
    args = parser.parse_args()

    begun = time.monotonic()
    tokenizer_file = args.out / "tokenizer.json"
    tokenizer = train_tokenizer(args.vocab, args.seed)
    save_tokenizer(tokenizer, args.out, Shape.max_position_embeddings)
    print(f"tokenizer of {tokenizer.get_vocab_size()} tokens in {time.monotonic() - begun:.0f} s", flush=True)
    model = train(args, tokenizer_file)
    save_model(model, args.out)

    prompts = fresh_prompts(
        tokenizer, args.seed + 777, 20 if args.smoke else 200, 100 if args.smoke else 1000
    )
    answers = answer(model, tokenizer, prompts)
    print("fresh prompts:", answers.summary(prompts), flush=True)
    texts = [f"<|user|>{prompt.message}<|end|><|assistant|>" for prompt in prompts]
    replies = [tokenizer.decode(ids) for ids in greedy(model, tokenizer, texts, 24)]
    right = sum(prompt.answer in reply for prompt, reply in zip(prompts, replies, strict=True))
    print(f"as a chat: right {right}/{len(prompts)}, such as {replies[:4]}", flush=True)
    wrong = [
        {"question": p.question, "answer": p.answer, "said": t, "tokens": n}
        for p, t, r, n in zip(prompts, answers.texts, answers.right, answers.lengths, strict=True)
        if not r
    ]
    print("wrong:", json.dumps(wrong[:6], indent=1), flush=True)
    requests = [
        "<|user|>Tell me a story about a fox.<|end|><|assistant|>",
        "<|user|>Hello!<|end|><|assistant|>",
        "Once upon a time",
    ]
    for request, said in zip(
        requests, greedy(model, tokenizer, requests, 24 if args.smoke else 400), strict=True
    ):
        print(f"{request!r} -> {tokenizer.decode(said)!r} ({len(said)} tokens)", flush=True)


if __name__ == "__main__":
    main()
