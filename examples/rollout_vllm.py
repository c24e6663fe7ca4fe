"""Sample with vLLM, and save what `precision-forensics rollout-check` reads.

python examples/rollout_vllm.py MODEL_DIRECTORY prompts.txt dump.npz --dtype bfloat16
precision-forensics rollout-check --model MODEL_DIRECTORY dump.npz
"""

import argparse
import os
from pathlib import Path

from precision_lib.mismatch.saving import save_dump

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("prompts", help="one prompt a line")
parser.add_argument("dump")
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--kv-cache-dtype", default="auto")
parser.add_argument("--batch", type=int, default=32, help="sequences that are decoded together")
parser.add_argument("--max-tokens", type=int, default=64)
parser.add_argument("--temperature", type=float, default=1.0)
parser.add_argument("--top-p", type=float, default=1.0)
parser.add_argument("--logprobs", default="raw", choices=["raw", "processed"])
options = parser.parse_args()
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM, SamplingParams  # noqa: E402  # it reads the environment

engine = LLM(
    options.model,
    dtype=options.dtype,
    kv_cache_dtype=options.kv_cache_dtype,
    max_num_seqs=options.batch,
    logprobs_mode=f"{options.logprobs}_logprobs",
    generation_config="vllm",  # otherwise the model's own file may change temperature and top-p
    enforce_eager=True,
    max_model_len=1024,
    seed=0,
)
lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()
texts = [line for line in lines if line.strip()]
settings = SamplingParams(
    temperature=options.temperature,
    top_p=options.top_p,
    max_tokens=options.max_tokens,
    logprobs=0,  # of the sampled token alone
)
if engine.get_tokenizer().chat_template:
    chats = [[{"role": "user", "content": text}] for text in texts]
    requests = engine.chat(chats, settings, use_tqdm=False)
else:
    requests = engine.generate(texts, settings, use_tqdm=False)

responses = [request.outputs[0] for request in requests]
save_dump(
    options.dump,
    claimed={
        "rollout_dtype": options.dtype,
        "kv_cache_dtype": options.kv_cache_dtype,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "logprobs": options.logprobs,
    },
    prompt_ids=[request.prompt_token_ids for request in requests],
    token_ids=[list(response.token_ids) for response in responses],
    rollout_logprobs=[
        # The entry of the sampled token: the dictionary may hold others.
        [entry[token].logprob for token, entry in zip(r.token_ids, r.logprobs, strict=True)]
        for r in responses
    ],
)
