"""Write checkpoints: archives in the released layout, state dicts, safetensors, programs."""
