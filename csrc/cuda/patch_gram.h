// Gram matrices of the patches of an activation, without a matrix of all patches.
//
// A patch is x in R^d, one of `groups` per output position. With z = (x - shift, 1, s), where s is
// the one-hot label or a code of the patch, or nothing, D = d + 1 + classes or codes, this adds
//
//     gram[g] += sum over patches of z z^T          (upper triangle, float64, row-major)
//
// which holds X X^T, S X^T, S S^T, the sums and the class sums. The patches are given by a rule
// (random positions of every sample, or all positions) or listed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "patch_index.cuh"

namespace sylvinit {

enum ElementType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// How products of float32 are taken. 3xTF32 splits every factor into two TF32 numbers and drops
// the product of the small parts: as accurate as float32, on tensor cores.
enum Arithmetic : int { k3xTF32 = 0, kTF32 = 1, kFFMA = 2 };

constexpr int kAxes = 3;

// Bits of *status.
constexpr int kLabelOutOfRange = 1;
constexpr int kPatchOutOfRange = 2;

// Limit on kernel[0] * kernel[1] + kernel[2]: a block looks these offsets up in shared memory.
constexpr std::int64_t kMaxTapSlots = 96;

struct PatchGram {
  // The activation: entries of groups * channels planes with three spatial axes, the last one the
  // innermost. An axis that is not there has size, kernel and output size 1: rows of a matrix have
  // none. Strides count elements.
  const void* x = nullptr;
  int element_type = kFloat32;
  int groups = 1;
  std::int64_t channels = 1;  // of a group
  std::int64_t entry_stride = 0;
  std::int64_t channel_stride = 1;
  PatchAxis axis[kAxes] = {
      {1, 1, 1, 0, kZeros, false}, {1, 1, 1, 0, kZeros, false}, {1, 1, 1, 0, kZeros, false}};
  std::int64_t axis_stride[kAxes] = {0, 0, 0};
  std::int64_t kernel[kAxes] = {1, 1, 1};
  std::int64_t out_size[kAxes] = {1, 1, 1};
  // Order of the features of a patch: (tap, channel), or (channel, tap) as in a weight.
  bool tap_major = true;

  // The patches. Sample r of this call has entries_per_sample * prod(out_size) positions and is
  // the (first_sample + r)-th of the data. `draws` of the positions are taken at random, with the
  // key of the layer's call; 0 takes each once. Or entry[p] and position[p] list them.
  std::int64_t n = 0;
  std::int64_t entries = 0;  // of the activation
  std::int64_t entries_per_sample = 1;
  std::int64_t first_sample = 0;
  std::int64_t draws = 0;
  std::uint32_t key0 = 0, key1 = 0;
  const std::int64_t* entry = nullptr;
  const std::int64_t* position = nullptr;

  // What stands beside x in z. Labels are those of the samples, or of the listed patches.
  const float* shift = nullptr;  // (groups, d), or nullptr for 0
  const std::int64_t* labels = nullptr;
  std::int64_t classes = 0;
  // The same by class: owners (samples or listed patches) of class c, ascending, are
  // order[starts[c]], ..., order[starts[c + 1] - 1].
  const std::int64_t* order = nullptr;
  const std::int64_t* starts = nullptr;
  const float* code = nullptr;  // (n, codes), rows code_stride apart
  std::int64_t codes = 0;
  std::int64_t code_stride = 0;

  // The rows of the Gram matrix that are wanted, `rows` of them from first_row on; 0: all.
  std::int64_t first_row = 0;
  std::int64_t rows = 0;

  int* status = nullptr;
};

SYLVINIT_HD std::int64_t taps_of(const PatchGram& gram) {
  return gram.kernel[0] * gram.kernel[1] * gram.kernel[2];
}

// d, the length of a patch.
SYLVINIT_HD std::int64_t features_of(const PatchGram& gram) {
  return gram.channels * taps_of(gram);
}

// D, the length of z.
SYLVINIT_HD std::int64_t columns_of(const PatchGram& gram) {
  return features_of(gram) + 1 + gram.classes + gram.codes;
}

// Rows of the result.
SYLVINIT_HD std::int64_t rows_of(const PatchGram& gram) {
  return gram.rows > 0 ? gram.rows : columns_of(gram);
}

// Sums of columns over the patches of each class, see patch_sums.h: columns [begin, begin + width)
// of (x - shift, code, 1), over the first `patches`.
struct PatchSums {
  std::int64_t begin = 0;
  std::int64_t width = 0;
  std::int64_t patches = 0;
  std::int64_t classes = 1;    // without labels all patches are one class
  int parts = 1;               // of the patches of a class
  std::int64_t workspace = 0;  // numbers: (groups, classes, parts, width)
};

// Rows that patches are gathered to before they are multiplied, see patch_gather.h.
struct PatchRows {
  std::int64_t patches = 0;  // at a time; 0: they are read where they lie
  std::int64_t stride = 0;   // numbers of a row and group
};

// How one call is laid out on the device.
struct PatchGramPlan {
  int tile = 0;                 // edge of a square tile of the Gram matrix
  int splits = 0;               // parts into which the patches are split, summed in order
  std::int64_t first_pair = 0;  // the first tile of the upper triangle with a wanted row
  std::int64_t pairs = 0;       // and how many there are
  PatchSums sums;               // what is added up beside the products
  PatchRows rows;
  // In the workspace: the tiles, then the sums of the columns of tiles on the diagonal, then
  // `sums`, then rows. Places count float64 numbers.
  std::int64_t column_sums = 0;
  std::int64_t class_sums = 0;
  std::int64_t rows_place = 0;
  std::int64_t workspace = 0;  // bytes, bounded whatever the number of patches
};

// Throws std::invalid_argument if a field is outside its limits, naming it.
void check_patch_gram(const PatchGram& gram);

// `multiprocessors` of the current device, and a tile of 32, 64 or 128, or 0 to choose.
PatchGramPlan plan_patch_gram(const PatchGram& gram, Arithmetic arithmetic, int multiprocessors,
                              int tile);

// gram_out (groups, rows, D) is added to; workspace has plan.workspace bytes.
void patch_gram(const PatchGram& gram, const PatchGramPlan& plan, Arithmetic arithmetic,
                double* gram_out, double* workspace, cudaStream_t stream);

}  // namespace sylvinit
