"""What anybody would write with transformers alone: a prompt, streamed. The other side of benchmarks/startup.py."""

import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

folder, prompt = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder)
model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
inputs: Any = tokenizer.apply_chat_template(
    [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
model.generate(**inputs, max_new_tokens=1, do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True))
