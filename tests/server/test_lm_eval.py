"""lm-eval's local-completions, unchanged: loglikelihoods of a tiny local task through the server equal the offline API's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stoker import LLM, SamplingParams
from support.server_process import CHECKPOINT, RunningServer

QUESTIONS = [
    ("Once upon a", [" time", " stone", " bell"]),
    ("The sun rose over the", [" town", " of", " hills"]),
    ("In the end each took", [" half", " the", " river"]),
]
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {path}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
num_fewshot: 0
metric_list: [{{metric: acc}}]
"""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_loglikelihoods(
    demo: RunningServer, offline: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums and greedy flags of every choice, as lm-eval finds them."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = tmp_path / "tiny.jsonl"
    data.write_text("\n".join(json.dumps({"question": q, "choices": c}) for q, c in QUESTIONS))
    (tmp_path / "tiny.yaml").write_text(TASK.format(path=data))
    result = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "m",
            "base_url": demo.url + "/v1/completions",
            "tokenizer": str(CHECKPOINT),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": True,
            "num_concurrent": 4,
            "max_length": 512,
        },
        tasks=["tiny"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples: list[Any] = result["samples"]["tiny"]
    assert len(samples) == len(QUESTIONS)
    tokenizer = offline.get_tokenizer()
    for sample, (question, choices) in zip(samples, QUESTIONS, strict=True):
        for (value, greedy), choice in zip(sample["filtered_resps"], choices, strict=True):
            context, whole = tokenizer.encode(question), tokenizer.encode(question + choice)
            params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
            (found,) = offline.generate([{"prompt_token_ids": whole}], params)
            assert found.prompt_logprobs is not None
            entries = list(zip(whole, found.prompt_logprobs, strict=True))[len(context) :]
            assert float(value) == pytest.approx(
                sum(entry[token].logprob for token, entry in entries), abs=1e-3
            )
            assert str(greedy) == str(all(entry[token].rank == 1 for token, entry in entries))
