// Patches as rows in memory, for activations whose numbers cannot be read four at a time: each is
// then read once from there, and many times in packs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "patch_gram.h"

namespace sylvinit {

// Whether, and how many patches at a time, for tiles of that many columns across.
PatchRows plan_rows(const PatchGram& gram, bool packed, std::int64_t tiles);

// rows[p][group] = (x - shift, code, 0 up to the stride) of patches first + p, p < count.
void gather_rows(const PatchGram& gram, const PatchRows& plan, std::int64_t first,
                 std::int64_t count, float* rows, cudaStream_t stream);

// `count` such rows as an activation of their own.
PatchGram gathered_rows(const PatchGram& gram, const PatchRows& plan, std::int64_t count,
                        const float* rows);

}  // namespace sylvinit
