"""Bytes near and far: stores over URLs, the cache that a node shares, fetch ahead in order.

Import from the modules; nothing heavy (obstore, fsspec) is imported before it is used. What the
rooms below use, and all they need::

    from shardkit.storage.store import ObjectInfo, Store, is_local, local_path, open_store
    from shardkit.storage.cache import Cache                          # picklable, context manager
    from shardkit.storage.fetch import Request, Result, fetch_in_order
    from shardkit.storage.shards import ShardFetcher

    store = open_store(storage_options)              # any scheme; see Store for its methods
    cache = Cache(cache_dir, limit="200gb", policy="next-use")        # limit=None: unlimited

Whole shards, ahead of use, each a pinned and verified file (``entry.data`` is a memoryview of it)::

    fetcher = ShardFetcher(store, cache, lookahead_bytes=1 << 30, verify="once")
    fetcher.schedule(requests)                       # in order of first use; any iterable, lazily
    with fetcher.open(request) as entry:             # waits if it is not there yet; closing unpins
        entry.data[start:stop], entry.path, entry.size
    fetcher.close()                                  # < 0.5 s, nothing is left running

A ``Request`` is ``Request(url, size=-1, checksum=None, version=None, start=0, stop=None,
next_use=None, tag=None)``: ``checksum`` is the 64-bit xxh3 of the whole object as an int (then no
HEAD is needed: it is the version); ``version=None`` asks the store for it, ``""`` goes without;
``next_use`` is after how many more requests of this fetcher the object is wanted again (``None``:
not known), for the next-use policy. Local shards are mapped where they lie.

Many small objects or ranges, in order, concurrent, errors as values::

    with fetch_in_order(store, requests, lookahead_bytes=64 << 20, num_threads=32,
                        cache=cache_or_None) as results:
        for result in results:                       # one a request, in the order of requests
            result.request.tag, result.error, result.data       # or result.unwrap() to raise

One object through the cache: ``cache.get(key, load)`` gives bytes, ``cache.open(key, fill,
size=n)`` a pinned ``Entry``.

Sparse ranges of one object: ``store.get_ranges(url, ranges)`` coalesces.
"""
