"""What a packed dataset is: tar members and offsets, sidecar, manifest. Values, pure functions.

``tar``       headers of the dialect, their checksums, and walking the members of a byte range
``keys``      which keys and exts the dialect holds, and how others are rewritten
``metadata``  metadata rows as strict JSON
``sidecar``   the Parquet table beside a shard, and the ``.idx`` of sample offsets
``manifest``  the manifest, the shard table, the fingerprint
``sniff``     the ext of bytes whose name says nothing

``docs/format.md`` is the specification; everything here implements it.
"""
