#include <cstdint>
#include <stdexcept>
#include <string>

#include "element.cuh"
#include "launch.h"
#include "patch_gram.h"
#include "patch_layout.cuh"
#include "patch_round.cuh"
#include "patch_sums.h"

namespace sylvinit {

namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 32;                 // of a block: neighbors are read together
constexpr int kLanes = kThreads / kColumns;  // patches that a block reads at a time
// Blocks for each multiprocessor, so that loads of some are on their way while others wait.
constexpr int kBlocksPerMultiprocessor = 8;
// A part is at least this long: choosing its patches takes as long as adding them up.
constexpr std::int64_t kLeastPatchesOfPart = 256;

// Patch q of a class, in the order of its owners, as a patch of the call.
SYLVINIT_HD std::int64_t patch_of_class(const PatchGram& gram, std::int64_t first, std::int64_t q) {
  if (gram.order == nullptr) return q;
  const std::int64_t each = patches_of_owner(gram), owner = q / each;
  return gram.order[first + owner] * each + (q - owner * each);
}

// sums[group][class][part][column]. Grid: (tiles of columns * parts * classes, groups).
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(PatchGram gram, PatchSums sums, double* workspace) {
  __shared__ Round<kThreads> round;
  __shared__ double of_lane[kLanes][kColumns];
  const int thread = static_cast<int>(threadIdx.x), group = static_cast<int>(blockIdx.y);
  const int lane = thread / kColumns, slots = tap_slots(gram);
  const std::int64_t tiles = (sums.width + kColumns - 1) / kColumns;
  const std::int64_t task = blockIdx.x / tiles, tile = blockIdx.x - task * tiles;
  const std::int64_t of_class = task / sums.parts;
  const int part = static_cast<int>(task - of_class * sums.parts);
  const std::int64_t within = tile * kColumns + thread % kColumns, f = sums.begin + within;
  const std::int64_t d = features_of(gram);

  std::int64_t first = 0, patches = sums.patches;
  if (gram.order != nullptr) {
    first = gram.starts[of_class];
    patches = (gram.starts[of_class + 1] - first) * patches_of_owner(gram);
  }
  const std::int64_t end = split_begin(patches, sums.parts, part + 1);
  const bool is_feature = f < d, is_code = f >= d && f < d + gram.codes;
  const PatchColumn column = column_of_feature(gram, group, is_feature ? f : 0);
  const float shift = gram.shift == nullptr || !is_feature ? 0.0f : gram.shift[group * d + f];
  const int per_round = patches_of_round<kThreads>(slots);
  double total = 0.0;
  for (std::int64_t q = split_begin(patches, sums.parts, part); q < end; q += per_round) {
    const int count = end - q < per_round ? static_cast<int>(end - q) : per_round;
    choose_round(gram, count, [&](int i) { return patch_of_class(gram, first, q + i); }, round);
    if (within < sums.width) {
#pragma unroll 4
      for (int r = lane; r < count; r += kLanes) {
        if (!has_patch(round.row[r].label)) continue;
        if (is_feature) {
          const std::int64_t offset =
              element_offset(round.row[r].offset, round.tap + r * slots, column);
          total += (offset < 0 ? 0.0f : element_at(gram, offset)) - shift;
        } else if (is_code) {
          total += gram.code[patch_of_class(gram, first, q + r) * gram.code_stride + f - d];
        } else {
          total += 1.0;
        }
      }
    }
    __syncthreads();  // the round is read no more
  }
  of_lane[lane][thread % kColumns] = total;
  __syncthreads();
  if (lane > 0 || within >= sums.width) return;
  for (int other = 1; other < kLanes; ++other) total += of_lane[other][thread];
  workspace[((group * sums.classes + of_class) * sums.parts + part) * sums.width + within] = total;
}

// The sum over parts of one column of one class.
__device__ double sum_of_parts(const PatchSums& sums, const double* workspace, std::int64_t group,
                               std::int64_t of_class, std::int64_t within) {
  const double* place =
      workspace + (group * sums.classes + of_class) * sums.parts * sums.width + within;
  double total = 0.0;
  for (int part = 0; part < sums.parts; ++part) total += place[part * sums.width];
  return total;
}

// Grid: (parts of width, groups).
__global__ void __launch_bounds__(kThreads)
    add_sums_kernel(PatchGram gram, PatchSums sums, const double* workspace, double* gram_out) {
  const std::int64_t within = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (within >= sums.width) return;
  const std::int64_t d = features_of(gram), columns = columns_of(gram), group = blockIdx.y;
  const std::int64_t rows = rows_of(gram), f = sums.begin + within;
  auto add = [&](std::int64_t row, std::int64_t column, double value) {
    if (row < gram.first_row || row >= gram.first_row + rows) return;
    gram_out[(group * rows + row - gram.first_row) * columns + column] += value;
  };
  double of_all = 0.0;
  for (std::int64_t c = 0; c < sums.classes; ++c) {
    const double total = sum_of_parts(sums, workspace, group, c, within);
    of_all += total;
    if (gram.classes == 0) continue;
    const std::int64_t row = d + 1 + c;
    if (f < d) {
      add(f, row, total);
    } else if (f < d + gram.codes) {
      add(row, f + 1 + gram.classes, total);
    } else {
      add(d, row, total);
      add(row, row, total);
    }
  }
  if (f >= d && f < d + gram.codes) add(d, f + 1 + gram.classes, of_all);
}

// Grid: (parts of d, groups).
__global__ void __launch_bounds__(kThreads)
    mean_kernel(PatchSums sums, const double* workspace, float* mean) {
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (f >= sums.width) return;
  const double total = sum_of_parts(sums, workspace, blockIdx.y, 0, f);
  mean[blockIdx.y * sums.width + f] = static_cast<float>(total / static_cast<double>(sums.patches));
}

void launch_sums(const PatchGram& gram, const PatchSums& sums, double* workspace,
                 cudaStream_t stream) {
  const std::int64_t tiles = (sums.width + kColumns - 1) / kColumns;
  const std::int64_t blocks = tiles * sums.parts * sums.classes;
  if (blocks > 0x7FFFFFFF) throw std::invalid_argument("patch_gram: too many classes");
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(gram.groups));
  launch("patch_gram's class sums", sums_kernel, grid, dim3(kThreads), stream, gram, sums,
         workspace);
}

dim3 grid_of(std::int64_t width, int groups) {
  return dim3(static_cast<unsigned>((width + kThreads - 1) / kThreads),
              static_cast<unsigned>(groups));
}

PatchSums planned(const PatchGram& gram, PatchSums sums, int blocks) {
  const std::int64_t tiles = (sums.width + kColumns - 1) / kColumns;
  const std::int64_t tasks = tiles * sums.classes * gram.groups;
  const std::int64_t most = sums.patches / sums.classes / kLeastPatchesOfPart;
  std::int64_t parts = blocks / tasks;
  parts = parts < most ? parts : most;
  sums.parts = static_cast<int>(parts < 1 ? 1 : parts);
  sums.workspace = gram.groups * sums.classes * sums.parts * sums.width;
  return sums;
}

}  // namespace

PatchSums sums_beside(const PatchGram& gram, int multiprocessors) {
  PatchSums sums;
  sums.patches = gram.n;
  sums.classes = gram.classes > 0 ? gram.classes : 1;
  const std::int64_t d = features_of(gram);
  sums.begin = gram.classes > 0 ? 0 : d;
  sums.width = gram.classes > 0 ? d + gram.codes + 1 : gram.codes;
  if (sums.width == 0) return sums;
  return planned(gram, sums, multiprocessors * kBlocksPerMultiprocessor);
}

void add_sums(const PatchGram& gram, const PatchSums& sums, double* gram_out, double* workspace,
              cudaStream_t stream) {
  if (sums.width == 0) return;
  launch_sums(gram, sums, workspace, stream);
  launch("patch_gram's class sums", add_sums_kernel, grid_of(sums.width, gram.groups),
         dim3(kThreads), stream, gram, sums, workspace, gram_out);
}

PatchSums sums_for_mean(const PatchGram& gram, std::int64_t count) {
  check_patch_gram(gram);
  if (count < 1 || count > gram.n) {
    throw std::invalid_argument("patch_gram: count must be in [1, n], got " +
                                std::to_string(count));
  }
  PatchSums sums;
  sums.patches = count;
  sums.width = features_of(gram);
  return planned(gram, sums, 1);
}

void patch_mean(const PatchGram& gram, std::int64_t count, float* mean, double* workspace,
                cudaStream_t stream) {
  const PatchSums sums = sums_for_mean(gram, count);
  PatchGram raw = gram;
  raw.shift = nullptr;
  raw.order = nullptr;
  launch_sums(raw, sums, workspace, stream);
  launch("patch_mean", mean_kernel, grid_of(sums.width, gram.groups), dim3(kThreads), stream, sums,
         static_cast<const double*>(workspace), mean);
}

}  // namespace sylvinit
