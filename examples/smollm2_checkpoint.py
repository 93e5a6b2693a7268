"""Write SmolLM2-135M-Instruct as a checkpoint folder, from the package that `make demo` installs.

    python examples/smollm2_checkpoint.py smollm2

Makes the folder `smollm2` (config.json, model.safetensors in bfloat16, tokenizer) and `book.txt`, Python's
own language reference, to calibrate on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from smollm2_demo import find_gguf, load_model, read_text


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
    loaded, tokenizer = load_model(find_gguf())
    # transformers does not save what it read from a GGUF file, but takes its weights into another model.
    config = transformers.LlamaConfig(
        **{key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = read_text(None)
    Path("book.txt").write_text(text, encoding="utf-8")
    print(f"{folder}: {model.num_parameters():,} parameters; book.txt: {len(text):,} characters")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
