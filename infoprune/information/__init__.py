"""Matrix-based information theory: pure functions, tensors in, tensors out, in bits.

``gram`` (distances, kernels, widths), ``entropy`` (Rényi entropy and the information made of it), ``scoring`` (every
filter of a layer at once), ``decomposition`` and ``ensembles`` (redundancy, synergy, sets of filters),
``permutation`` (CMI-permutation), ``resampling`` (debiasing, p-values, intervals), ``traces`` (large mini-batches),
``estimators`` and ``checking`` (an independent estimate, and how far to trust ours).
"""
