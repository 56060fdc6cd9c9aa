// Sums of the columns of Z over the patches of each class, and the mean of the first patches.
//
// With one-hot labels these are the products of Z with the labels: additions instead of products.
// A block adds up 32 columns over one part of the patches of one class; parts are added in order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "patch_gram.h"

namespace sylvinit {

// What patch_gram adds in this way: nothing (width 0) without labels and without a code.
PatchSums sums_beside(const PatchGram& gram, int multiprocessors);

// Adds them to the rows of the Gram matrix that are wanted.
void add_sums(const PatchGram& gram, const PatchSums& sums, double* gram_out, double* workspace,
              cudaStream_t stream);

// The sums of the first `count` patches, for their mean.
PatchSums sums_for_mean(const PatchGram& gram, std::int64_t count);

// mean (groups, d) of the first `count` patches, a shift that keeps the products small; workspace
// holds sums_for_mean(gram, count).workspace numbers.
void patch_mean(const PatchGram& gram, std::int64_t count, float* mean, double* workspace,
                cudaStream_t stream);

}  // namespace sylvinit
