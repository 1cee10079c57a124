"""The token-shard format: manifest, writer and memory-mapped reader.

Face: `Manifest`, `ShardWriter`, `TokenShards`, `TokenizerInfo`, `read_manifest`.
"""

from bnb_ds.shards.manifest import Manifest, TokenizerInfo
from bnb_ds.shards.reader import TokenShards, read_manifest
from bnb_ds.shards.writer import ShardWriter

__all__ = ["Manifest", "ShardWriter", "TokenShards", "TokenizerInfo", "read_manifest"]
