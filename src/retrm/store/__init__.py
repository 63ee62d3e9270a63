"""Features on disk: shards of safetensors with a manifest written last, memory-mapped when read."""
