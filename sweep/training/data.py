"""Data on the device: tensors, seeded splits, and minibatches without a DataLoader.

Interface that trainers build on (implementation follows):

    epoch_order(seed: int, epoch: int, n: int) -> Tensor            # (n,) int64 permutation, on the CPU,
                                                                    # of derive_seed(seed, "order", epoch)
    class Split:      x: Tensor (n, *feature_shape) float32 in [0, 1];  y: Tensor (n,) int64
    class SearchData: train: Split; val: Split; mean: float; std: float (of the training pixels);
                      info: DatasetInfo; .to(device); .test raises SealedTestSplitError
    load_search_data(name, data_dir, seed) -> SearchData
    class FinalData:  train: Split (train + validation); test: Split; mean; std; info
    load_final_data(name, data_dir, seed) -> FinalData              # sweep train alone
    class Batches:    iterable of (x, y) minibatches over resident tensors, for Lightning:
                      Batches(split, batch_size, seed=None, first_epoch=0); set_epoch(e) ; __len__ ; seed None: in order
"""
