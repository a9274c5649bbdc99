"""Bytes near and far: stores over URLs, the cache that a node shares, fetch ahead in order.

Import from the modules; nothing heavy (obstore, fsspec) is imported before it is used::

    from shardkit.storage.store import ObjectInfo, Store, is_local, local_path, open_store
"""
