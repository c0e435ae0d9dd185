#!/usr/bin/env python3
"""Writes tests/fixtures/templates/: chat templates of released models, small tokenizers with their special tokens, and
what transformers and TRL make of a few conversations. README.md says how it is read.

pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 tokenizers==0.23.2
"""

import inspect
import json
import pathlib
import shutil
import tempfile

import tiny_tokenizer
import transformers
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests/fixtures/templates"
RELEASED = pathlib.Path(inspect.getfile(trl)).parent / "chat_templates"

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are"
    " a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token"
    " }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# name: template, special tokens, BOS, EOS, whether the tokenizer itself puts BOS in front
STYLES = {
    "smollm2": (SMOLLM2, IM, "<|im_start|>", "<|im_end|>", False),
    "qwen2_5": ("qwen2_5", IM, None, "<|im_end|>", False),
    "qwen3": ("qwen3", IM, None, "<|im_end|>", False),
    "llama3": ("llama3", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", True),
    "gemma": ("gemma", ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", True),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", True),
    "phi3": ("phi3", ["<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<s>",
             "<|endoftext|>", False),
    "zephyr": (ZEPHYR, ["<s>", "</s>"], "<s>", "</s>", True),
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "It's the weather of <a> city & more: é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number",
                       "default": 1.0}}, "required": ["city"]}}}


def message(role, content):
    return {"role": role, "content": content}


def rows(style):
    user = [message("user", "What is the answer to question 12?")]
    first = {"prompt": user, "chosen": [message("assistant", "The answer is 42.")],
             "rejected": [message("assistant", "Not as warm as in the south")]}
    history = user + [message("assistant", " Which one? "), message("user", "The\nsecond — ½ of it.")]
    second = {"prompt": history, "chosen": [message("assistant", "Yes, it is.")],
              "rejected": [message("assistant", "Yes, it is not.")]}
    found = [first, second]
    if style in ("smollm2", "qwen2_5", "qwen3", "llama3", "phi3", "zephyr"):
        found.append({**first, "prompt": [message("system", "You are a tool.")] + user})
    if style.startswith("qwen"):
        found.append({**first, "tools": [TOOL]})
    if style == "qwen3":
        found.append({**first, "chat_template_kwargs": {"enable_thinking": False}})
        thought = [message("assistant", "<think>\nI think.\n</think>\n\nYes.")]
        found.append({**second, "chosen": thought})
    return found


def tokens(trainer, tokenizer, row):
    """What the trainer's own preparation makes of one row."""
    maker, config = (DPOTrainer, DPOConfig) if trainer == "dpo" else (SFTTrainer, SFTConfig)
    shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                        num_key_value_heads=1, vocab_size=len(tokenizer))
    model = LlamaForCausalLM(shape)
    row = {key: json.dumps(value) if key == "tools" else value for key, value in row.items()}
    extra = {"ref_model": LlamaForCausalLM(shape)} if trainer == "dpo" else {}
    with tempfile.TemporaryDirectory() as folder:
        args = config(output_dir=folder, report_to=[], use_cpu=True, bf16=False, max_length=None)
        made = maker(model=model, args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer, **extra)
    return made.train_dataset[0]


def record(tokenizer, row):
    variables = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}

    def text(messages, **more):
        return tokenizer.apply_chat_template(messages, tokenize=False, **variables, **more)

    dpo = tokens("dpo", tokenizer, row)
    completion = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    sft = tokens("sft", tokenizer, {**completion, "completion": row["chosen"]})
    return {
        **row,
        "prompt_text": text(row["prompt"], add_generation_prompt=True),
        "chosen_text": text(row["prompt"] + row["chosen"]),
        "prompt_ids": dpo["prompt_ids"], "chosen_ids": dpo["chosen_ids"], "rejected_ids": dpo["rejected_ids"],
        "sft_ids": sft["input_ids"], "sft_mask": [int(label != -100) for label in sft["labels"]],
    }


def main():
    versions = {"transformers": transformers.__version__, "trl": trl.__version__}
    shutil.rmtree(ROOT, ignore_errors=True)
    for style, (template, special, bos, eos, leading) in STYLES.items():
        folder = ROOT / style
        named = {"eos_token": eos, "pad_token": eos, **({"bos_token": bos} if bos else {})}
        tiny_tokenizer.save(tiny_tokenizer.build(special, bos if leading else None), folder, **named)
        if "{" not in template:
            template = (RELEASED / f"{template}.jinja").read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        golden = {"made_with": versions, "rows": [record(tokenizer, row) for row in rows(style)]}
        (folder / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
        print(style, len(golden["rows"]), "rows")


if __name__ == "__main__":
    main()
