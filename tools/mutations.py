"""Breaks one mechanism of the scheduler at a time and shows which test notices: writes benchmarks/results/mutations.md.

    python tools/mutations.py [--again] [WORD ...]      needs a finished `make native` and, as `make test` leaves them, the native tests (their objects are linked again with one file changed)

An edit replaces text in one file of csrc/sched (and leaves the tree alone: the changed file, the module and the package live in a
temporary folder). The tests of tests/sched run until the first that fails, the one that noticed before first; what none of them notices is
left to the random workloads of tests/native. What the results hold already is not run again, unless asked for by a word of its name or --again; so a run that
was broken off goes on. Exit code 1 if an edit went unnoticed.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / os.environ.get("BUILD", "build/dev")
NATIVE = ROOT / "build" / "native-tests"
RESULTS = ROOT / "benchmarks" / "results" / "mutations.md"
HEAD = """# Broken on purpose

By `python tools/mutations.py`: each edit of csrc/sched, and the first test that failed with it. The bugs planted behind
`planted(Bug::...)` are besides: tests/property/test_planted_bugs.py.

| mechanism | file | edit | noticed by |
| --- | --- | --- | --- |
"""
# Files of tests/sched, the quick ones first.
TESTS = (
    ("test_scripts", "test_orders", "test_door", "test_pool", "test_block_pool", "test_prefix_cache", "test_leaf_lru"),
    ("test_same_tokens", "test_attention_lists"),
    ("test_event_log", "test_attention_plan"),
)  # fmt: skip
WORKLOADS = "tests/property/test_random_workloads.py"


class Edit(NamedTuple):
    """Of csrc/sched/`file`: `old`, which is there once, becomes `new`."""

    mechanism: str
    file: str
    old: str
    new: str


EDITS = [
    Edit("1 fullness is computed: latch it", "admit.cpp", "if (blocked_ == nullptr) blocked_ = &req;", "if (blocked_ == nullptr) blocked_ = &req, pause_ = Pause::drain;"),
    Edit("2 one can_ever_fit: not at the door", "requests.cpp", "    if (need > have) {", "    if (false && need > have) {"),
    Edit("3 progress rule: nobody unsticks", "preemption.cpp", "  if (num_running_ > 1) {\n    preempt(", "  if (true) return false;\n  if (num_running_ > 1) {\n    preempt("),
    Edit("4 plan first: preempt though it will not be enough", "preemption.cpp", "  if (missing > 0) return;  // would be in vain", "  "),
    Edit("7 retracted reqs: to the back", "policies.cpp", ".tier = req.state == ReqState::waiting ? 1 : 0", ".tier = 1"),
    Edit("7 retracted reqs: full blocks not kept", "preemption.cpp", "  release_blocks(req);\n  leave_seat(req);", "  release_blocks(req);\n  flush_cache();\n  leave_seat(req);"),
    Edit("8 total order: ties by newest", "policies.cpp", ".seq = req.arrival_seq}", ".seq = -req.arrival_seq}"),
    Edit("9 hysteresis: none", "preemption.cpp", "  low_water_ = true;", "  low_water_ = false;"),
    Edit("10 abort: of a waiting req is lost", "requests.cpp", "[this](Req& req) { finish(req, FinishReason::abort); }", "[this](Req& req) { if (req.holds_seat()) finish(req, FinishReason::abort); }"),
    Edit("11 replayable: a hidden state in `random`", "policies.cpp", "static_cast<double>(mixed(config_.seed, static_cast<uint64_t>(req.arrival_seq)) >> 11);", "[] { static double hidden = 0; return hidden = -hidden - 1; }();"),
    Edit("12 reasons: wrong number", "admit.cpp", "                        .needed = needed,", "                        .needed = needed + 1,"),
    Edit("15 eviction: youngest first", "block_pool.cpp", "  block.prev = list.tail;\n  block.next = kNullBlock;\n  (list.tail == kNullBlock ? list.head : blocks_[static_cast<size_t>(list.tail)].next) = b;\n  list.tail = b;", "  block.next = list.head;\n  block.prev = kNullBlock;\n  (list.head == kNullBlock ? list.tail : blocks_[static_cast<size_t>(list.head)].prev) = b;\n  list.head = b;"),
    Edit("17 bounded bypass: no barrier", "admit.cpp", "    if (barrier && config_.head_of_line", "    if (false && barrier && config_.head_of_line"),
    Edit("17 bounded bypass: no limit at all", "admit.cpp", "req.overtaken < config_.bypass_limit);", "true);"),
    Edit("policy lpm", "policies.cpp", "      key.key = -matched();", "      key.key = matched();"),
    Edit("policy dfs-weight", "policies.cpp", "        key.key = -branch_weights_[static_cast<size_t>(branch)];", "        key.key = branch_weights_[static_cast<size_t>(branch)];"),
    Edit("policy sjf", "policies.cpp", "      key.key = req.length_limit - req.known();\n", "      key.key = 0;\n"),
    Edit("policy lof", "policies.cpp", "      key.key = req.known() - req.length_limit;", "      key.key = 0;"),
    Edit("policy hrrn", "policies.cpp", "      key.key = -static_cast<double>(now_ - req.account.arrival_time) / std::max(service, 1.0);", "      key.key = 0;"),
    Edit("policy priority", "policies.cpp", "      key.rank = req.priority;", "      key.rank = -req.priority;"),
    Edit("policy key", "policies.cpp", "      key.key = req.policy_key;", "      key.key = 0;"),
    Edit("policy key: invalidate() moves nobody", "policies.cpp", "  it->second->policy_key = key;\n", "  it->second->policy_key = key;\n  return;\n"),
    Edit("policy deadline", "policies.cpp", "static_cast<double>(due) + (due < now_ ? 2 * kLate : 0);", "0;"),
    Edit("policy deadline: what is late goes first", "policies.cpp", "(due < now_ ? 2 * kLate : 0)", "0"),
    Edit("policy fair: nobody is charged", "placement.cpp", "  tenant.served += num_tokens / tenant.weight;", "  tenant.served += 0 * num_tokens;"),
    Edit("policy fair: weights ignored", "placement.cpp", "num_tokens / tenant.weight;", "num_tokens;"),
    Edit("ageing: never", "policies.cpp", "num_admissions_ - req.admissions_seen < config_.aging_limit", "true"),
    Edit("deadlines: nobody is dropped", "policies.cpp", "void Scheduler::drop_late() {\n", "void Scheduler::drop_late() {\n  return;\n"),
    Edit("tenants: no limit on running reqs", "admit.cpp", "tenant.running + family > config_.max_running_per_tenant", "false"),
    Edit("tenants: no limit on queued reqs", "requests.cpp", "    if (queued + n > config_.max_queued_per_tenant) {", "    if (false) {"),
    Edit("urgent reqs wait for prompts under way", "scheduler.cpp", "      admit_urgent();", "      "),
    Edit("urgent reqs wait for long steps of others", "rows.cpp", "    most = std::min(most, std::max(0, ledger_.background));", "    most = std::min(most, ledger_.tokens);"),
    Edit("urgent reqs are expected for ever", "policies.cpp", "  urgent_until_ = next_batch_ + kUrgentSteps;", "  urgent_until_ = next_batch_ + 2 * kUrgentSteps;"),
    Edit("urgent reqs: equals count as such", "policies.cpp", "    if (border >= least) return;", "    if (border > least) return;"),
    Edit("policy deadline: preempted reqs in front of urgent ones", "policies.cpp", "      key.rank = key.key >= kLate;", "      "),
    Edit("estimate guaranteed: reserves nothing", "admit.cpp", "family * (most_blocks(group, req.length_limit - 1) - most_blocks(group, req.known_ahead))", "0"),
    Edit("estimate peak: of the candidate alone", "admit.cpp", "  peak_.clear();\n", "  peak_.clear();\n  if (num_running_ > 0) return 0;\n"),
    Edit("estimate learned: reserves nothing", "admit.cpp", "kClippedOutput)) * ratio_.value();", "kClippedOutput)) * 0.0;"),
    Edit("estimate learned: learns nothing of a preemption", "admission.cpp", "  value_ = std::max(value_, std::min(1.0, seen / share()));", "  (void)seen;"),
    Edit("victim newest", "preemption.cpp", "      return a.arrival_seq > b.arrival_seq;", "      return a.arrival_seq < b.arrival_seq;"),
    Edit("victim most_blocks", "preemption.cpp", "return a.tables[0].size() > b.tables[0].size();", "return a.tables[0].size() < b.tables[0].size();"),
    Edit("victim lowest_priority", "preemption.cpp", "return a.rank() > b.rank();", "return a.rank() < b.rank();"),
    Edit("victim least_progress", "preemption.cpp", "std::tuple(r.computed, -r.arrival_seq)", "std::tuple(-r.computed, -r.arrival_seq)"),
    Edit("prefix cache: several compute one prefix", "admit.cpp", "computed_by_another(req))", "false)"),
    Edit("prefix cache: duplicates stay", "publication.cpp", "    pool.retain(theirs);\n    pool.release(mine, req.last_step);\n    mine = theirs;", "    pool.retain(theirs);\n    pool.release(theirs, req.last_step);"),
    Edit("prefix cache: strategies forget hits", "prefix_cache.cpp", "  entry.hits += hit;", "  (void)hit;"),
    Edit("prefix cache: pins hold nothing", "control.cpp", "      pools_[static_cast<size_t>(g)].retain(block);\n", "      continue;\n"),
    Edit("prefix cache: own recompute is a hit", "admit.cpp", "  if (again) {\n    req.account.recovered", "  if (false) {\n    req.account.recovered"),
    Edit("prefix cache: flush does nothing", "control.cpp", "  return prefix_ ? prefix_->flush() : 0;", "  return 0;"),
    Edit("chunks: no cap a req", "rows.cpp", "  if (config_.long_prefill_token_threshold > 0)\n", "  if (false)\n"),
    Edit("chunks: no equal split", "rows.cpp", "config_.prefill_split == PrefillSplit::equal && ", "false && "),
    Edit("n > 1: children share a seed", "requests.cpp", "i == 0 ? base : mix_seed(base, static_cast<uint64_t>(i));", "base;"),
    Edit("n > 1: abort ends one child", "requests.cpp", "      if (!child->finished()) job(*child);\n", "      if (!child->finished()) { job(*child); break; }\n"),
    Edit("pause: in place goes on", "scheduler.cpp", "  if (pause_ == Pause::in_place || fatal_) return;", "  if (fatal_) return;"),
    Edit("pause: a drain lets reqs in", "admit.cpp", "  if (waiting_.empty() || pause_ != Pause::no) return;", "  if (waiting_.empty()) return;"),
    Edit("queue limit: none", "requests.cpp", "num_waiting() + n > config_.max_queued_reqs", "false"),
    Edit("account: retractions not counted", "preemption.cpp", "  ++req.account.retractions;\n", ""),
    Edit("account: work done twice not counted", "preemption.cpp", "  req.highest_computed = std::max(req.highest_computed, req.computed);\n", ""),
    Edit("account: queue time not counted", "policies.cpp", "  req.account.queue_time += now_ - req.queued_since;\n", ""),
    Edit("attention list: a head that gains a split keeps its slots", "attention_pieces.cpp", "      piece.partial = slots;", "      (void)slots;"),
    Edit("attention list: the new split of a head is nobody's", "attention_pieces.cpp", "    piece.unit_end += end * (now - before);", "    piece.unit_end += first * (now - before);"),
    Edit("attention list: pieces of rows that left stay", "attention_plan.cpp", "  if (added_.empty() && gone == 0) return Change::none;", "  if (added_.empty()) return Change::none;"),
    Edit("redaction: tokens stay", "replay.cpp", "        for (Token& token : req.tokens) token = numbers.token(token);\n", ""),
    Edit("urgent reqs displace nobody", "preemption.cpp", "void Scheduler::make_way() {\n", "void Scheduler::make_way() {\n  return;\n"),
    Edit("victims under `deadline`: the most urgent", "preemption.cpp", "return slack(a) > slack(b);", "return slack(a) < slack(b);"),
    Edit("swap: never", "swap.cpp", "  if (config_.preemption == Preemption::swap) return true;", "  if (config_.preemption == Preemption::swap) return false;"),
    Edit("swap: auto takes the dearer way", "swap.cpp", "2 * bytes * ns_per_byte_ <", "2 * bytes * ns_per_byte_ >"),
    Edit("swap: no limit of the host pool", "swap.cpp", "    if (mine > host_pools_[i].num_free()) return false;\n", ""),
    Edit("swap: copies wait for no step", "swap.cpp", "host[k], written_by);", "host[k], 0);"),
    Edit("swap: who comes back cannot turn round", "preemption.cpp", "  if (req.state == ReqState::swapping_in) return turn_back(req);", "  if (req.state == ReqState::swapping_in) { note_preempted(req, PreemptionKind::retract); return lose_swap(req); }"),
    Edit("swap: a lost head goes unseen", "swap.cpp", "  return req.swap_from > 0 &&", "  return false && req.swap_from > 0 &&"),
    Edit("swap: shared blocks are copied too", "swap.cpp", "  if (!prefix_ || any_window_) return 0;\n", "  return 0;\n"),
    Edit("n > 1: each computes the prompt", "fork.cpp", "  const int32_t n = req.params.n;\n", "  const int32_t n = req.params.n;\n  if (n > 1) return false;\n"),
    Edit("n > 1: prompt logprobs are told to the first alone", "commit.cpp", "    if (!req.parent_rid.empty()) tell_siblings(req, row, num_scores);\n", ""),
    Edit("n > 1: scores that nobody has are forgotten", "commit.cpp", "  if (row.forks && req.scored < req.prompt_len) return redo(req);", "  "),
    Edit("n > 1: each asks for the prompt's logprobs again", "fork.cpp", "  if (req.params.prompt_logprobs >= 0) req.next_score = req.prompt_len;\n", ""),
    Edit("n > 1: no seats kept for the siblings", "fork.cpp", "  reserved_seats_ += sign * num_siblings(leader);\n", "  (void)sign;\n"),
    Edit("replayable: handles are given anew untold", "scheduler.cpp", "  if (log_ != nullptr && !ended_.empty()) log_->take_events();\n", ""),
    Edit("prompt logprobs: what was discarded is never scored", "publication.cpp", "  req.next_score = std::min(req.next_score, req.scored);\n", "  "),
    Edit("windows: what took a hole is not withdrawn", "publication.cpp", "  if (filled && pending > committed_) made.push_back({entry, req.id});\n", "  (void)filled;\n"),
    Edit("windows: the way back takes a whole prompt's blocks", "swap.cpp", "window ? host.size() : static_cast", "window && false ? host.size() : static_cast"),
    Edit("windows: withdrawal ends at an entry without blocks", "prefix_cache.cpp", "    const EntryId up = remove(e);\n    if (up != kNoEntry &&", "    const EntryId up = entries_[static_cast<size_t>(e)].parent;\n    remove(e);\n    if (live(up) &&"),
    Edit("swap: copies do not wait for what others wrote", "swap.cpp", "std::max({req.last_step, req.forked_in + 1, committed_})", "std::max(req.last_step, req.forked_in + 1)"),
    Edit("n > 1: no blocks kept for the siblings", "admit.cpp", " +\n                        (family - 1) * partial_blocks(req, g);", ";"),
]  # fmt: skip


def commands(folder: Path, file: str, build: Path, target: str, made: Path) -> list[list[str]]:
    """How the changed file becomes `made`, in place of the build's `target`: compile, put into the library, link."""
    entries = json.loads((build / "compile_commands.json").read_text())
    entry = next(e for e in entries if e["file"].endswith(f"csrc/sched/{file}"))
    compile_ = [word for word in shlex.split(entry["command"]) if not word.endswith("ccache")]
    member = Path(compile_[compile_.index("-o") + 1]).name
    compile_ = [word for word in compile_ if word not in (entry["file"], "-O3", "-Werror")]
    compile_[compile_.index("-o") + 1] = str(folder / f"{file}.o")
    compile_ += [*([] if build == NATIVE else ["-O0"]), f"-I{ROOT / 'csrc'}", str(folder / file)]
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert ninja is not None, "needs ninja"
    text = subprocess.run([ninja, "-C", build, "-t", "commands", target], capture_output=True, text=True, check=True).stdout  # fmt: skip
    name = Path(target).name.partition(".")[0]
    link = next(line for line in reversed(text.splitlines()) if name in line and " -o " in line)
    words = shlex.split(re.sub(r"^:\s*&&\s*|\s*&&\s*:?.*$", "", link))
    words[words.index("-o") + 1] = str(made)
    words = [str(folder / "libsched.a") if w.endswith("libstoker_sched.a") else w for w in words]
    return [
        compile_,
        ["cp", str(build / "csrc" / "sched" / "libstoker_sched.a"), str(folder / "libsched.a")],
        ["ar", "d", str(folder / "libsched.a"), member],
        ["ar", "qs", str(folder / "libsched.a"), str(folder / f"{file}.o")],
        words,
    ]


def make(folder: Path, file: str, build: Path, target: str, made: Path) -> str:
    """Why it cannot be made; empty: it is."""
    for command in commands(folder, file, build, target, made):
        done = subprocess.run(command, cwd=build, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"NOT APPLIED: {done.stderr[-400:]}"
    return ""


def _suffix() -> str:
    return next((ROOT / "python" / "stoker").glob("_core.*.so")).name.removeprefix("_core")


def noticed(edit: Edit, folder: Path, before: str) -> str:
    """The test that failed with the edit; empty: none did. `before`: the one that did last time, asked first."""
    text = (ROOT / "csrc" / "sched" / edit.file).read_text()
    if text.count(edit.old) != 1:
        return f"NOT APPLIED: the text is there {text.count(edit.old)} times"
    (folder / edit.file).write_text(text.replace(edit.old, edit.new))
    module = folder / "python" / "stoker" / ("_core" + _suffix())
    if problem := make(folder, edit.file, BUILD, f"csrc/bind/{module.name}", module):
        return problem
    files = [[f"tests/sched/{name}.py" for name in group] for group in TESTS]
    if before.startswith("tests/sched"):
        files.insert(0, [before])
    env = {**os.environ, "PYTHONPATH": str(folder / "python")}
    flags = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "120"]
    for tests in files:
        command = [sys.executable, "-m", "pytest", *flags, *tests]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=900
            )
        except subprocess.TimeoutExpired:
            return "(hangs)"
        if done.returncode == 0:
            continue
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        if failed:
            return failed.group(1)
        return f"(breaks down: {done.returncode})"
    return noticed_by_workloads(edit, folder)


def noticed_by_workloads(edit: Edit, folder: Path) -> str:
    """The same of the random workloads, on the seeds of their test."""
    binary = folder / "random_workloads"
    if problem := make(folder, edit.file, NATIVE, f"tests/{binary.name}", binary):
        return problem
    seeds = runpy.run_path(str(ROOT / WORKLOADS))["SEEDS_THAT_ONCE_FAILED"]
    runs = {f"test_seeds_that_once_failed[{seed}]": ["--first", str(seed), "--count", "1"] for seed in seeds}
    for test, arguments in {**runs, "test_short": ["--count", "3000"]}.items():
        done = subprocess.run([str(binary), *arguments], capture_output=True, check=False, timeout=600)
        if done.returncode:
            return f"{WORKLOADS}::{test}"
    return ""


def begin_of_row(edit: Edit) -> str:
    old, new = ((" ".join(t.split()) or "nothing").replace("|", "\\|") for t in (edit.old, edit.new))
    return f"| {edit.mechanism} | {edit.file} | `{old[:110]}` → `{new[:110]}` | "


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--again"]
    rows: dict[str, str] = {}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            begin, _, test = line.removesuffix(" |").rpartition(" | ")
            rows[begin + " | "] = test
    known = {begin: rows.get(begin, "") for begin in map(begin_of_row, EDITS)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "python", folder / "python", ignore=shutil.ignore_patterns("_core.*.so"))
        for edit in EDITS:
            begin = begin_of_row(edit)
            if words and not any(word in edit.mechanism for word in words):
                continue
            seen = known[begin] not in ("", "NONE") and not known[begin].startswith("NOT")
            if seen and not words and "--again" not in sys.argv:
                continue
            known[begin] = noticed(edit, folder, known[begin]).replace("\n", " ") or "NONE"
            print(f"{begin}{known[begin]} |", flush=True)
            RESULTS.write_text(HEAD + "".join(f"{b}{test} |\n" for b, test in known.items() if test))
    sys.exit(any(test in ("", "NONE") or test.startswith("NOT") for test in known.values()))


if __name__ == "__main__":
    main()
