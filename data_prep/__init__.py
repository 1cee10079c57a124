"""Raw text to memory-mapped token shards."""
