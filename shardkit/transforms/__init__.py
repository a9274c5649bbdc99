"""Objects to training samples: how transforms are called, and the presets people expect.

A transform is any callable ``transform(sample)`` or ``transform(sample, rng)``:

- ``sample`` is a dict that it may change in place or leave alone;
- ``rng`` is passed if a parameter has that name: a ``numpy.random.Generator`` made from the
  sample's own seed and shared, in order, by all transforms of that sample;
- it returns a dict (one sample), a list, tuple or generator of dicts (several, or none), or None
  (the sample is dropped).

``transforms=[...]`` of a dataset takes such callables, and lists of them nested at will, so a
pipeline is a list: ``transforms=[image_pipeline("jpg", (256, 256)), my_function]``.

For the dataset: ``pipeline = Pipeline(transforms)`` once; ``pipeline(sample, seed)`` gives the
list of samples that come out, where ``seed`` is an integer of at most 64 bits; ``pipeline.decodes``
names the members that the leading presets decode themselves (``Decoders(decode, raw=...)``).
"""

from shardkit.transforms.pipeline import Pipeline, Sample, Transform

__all__ = ["Pipeline", "Sample", "Transform"]
