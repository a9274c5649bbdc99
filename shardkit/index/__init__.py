"""Any index → rows: key, members, metadata, in bounded memory.

    index = open_index("s3://bucket/table/*.parquet")   # or csv, json(l), arrow, folder, list, tars
    print(index.describe())                              # which column is what; all overridable
    index.num_rows; index.counts                         # int64 [num_groups]: rows per group
    index.fingerprint                                    # of contents, findings and filter
    index.check_keys()                                   # duplicate or empty keys, over all rows
    for rows in index.batches(8_192): ...                # or index.read(group, start, stop),
                                                         #    index.take(group, int64 [n])
    rows.keys                                            # list[str], the user's own
    rows.metadata                                        # pa.Table
    for member in rows.members:                          # MemberColumn, a list a field:
        member.names                                     #   name in the sample (None: absent, or
                                                         #   its ext is known from the bytes alone)
        member.urls, member.starts, member.sizes         #   where its bytes are
        member.values                                    #   or the bytes themselves
        member.name_for(sniff_ext(data))                 #   name, once the bytes are there
    index.metadata_columns; index.metadata_schema; index.key_column
    index.selection                                      # None, or which rows where= left

An ``Index`` is picklable and thread-safe, and its files are opened on first use in every process.
``write_index`` writes one down; ``adopt`` makes a dataset of tars that exist, and leaves them as
they are.
"""

from shardkit.index.adopt import AdoptOptions, AdoptSummary, adopt
from shardkit.index.adopt_metadata import MetadataChoice
from shardkit.index.findings import Findings
from shardkit.index.index import Index
from shardkit.index.open import open_index
from shardkit.index.rows import MemberColumn, Rows, member_name
from shardkit.index.selection import Selection
from shardkit.index.tar_groups import ScannedTar, scan_tars
from shardkit.index.tars import TarScan, scan_tar
from shardkit.index.write import write_index

__all__ = [
    "AdoptOptions",
    "AdoptSummary",
    "Findings",
    "Index",
    "MemberColumn",
    "MetadataChoice",
    "Rows",
    "ScannedTar",
    "Selection",
    "TarScan",
    "adopt",
    "member_name",
    "open_index",
    "scan_tar",
    "scan_tars",
    "write_index",
]
