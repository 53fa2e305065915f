"""From a checkpoint to a file: archives in the released layout, state dicts, safetensors."""
