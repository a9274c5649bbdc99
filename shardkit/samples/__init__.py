"""Rows → samples: where the bytes of rows come from, and what is made of them.

``shards``    samples of packed shards: whole shards mapped, or ranges where few rows are wanted
``raw``       samples of raw files that an index lists
``pipeline``  decode and transforms, with the policy for samples that fail
"""
