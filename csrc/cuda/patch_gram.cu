// Limits, plan and launches of patch_gram, and its two small kernels.
#include <cstdint>
#include <stdexcept>
#include <string>

#include "element.cuh"
#include "launch.h"
#include "patch_gram.h"
#include "patch_gram_tiles.cuh"
#include "patch_layout.cuh"

namespace sylvinit {

namespace {

constexpr int kThreads = 256;
// Blocks that one multiprocessor is given in all, so that the last ones to finish wait little.
constexpr int kBlocksPerMultiprocessor = 4;
// A part of the patches is at least this long, or its tile in the workspace costs more than it.
constexpr std::int64_t kLeastPatchesOfSplit = 256;
constexpr std::int64_t kMaxColumns = 1 << 16;
constexpr std::int64_t kMaxPatches = std::int64_t{1} << 40;

// gram_out[g] += the tiles of all splits, in their order. Grid: (pairs * groups, parts of a tile).
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const double* workspace, PatchGramPlan plan, std::int64_t columns,
                  std::int64_t first_row, std::int64_t rows, double* gram_out) {
  const std::int64_t area = static_cast<std::int64_t>(plan.tile) * plan.tile;
  const std::int64_t inside = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (inside >= area) return;
  const std::int64_t step = gridDim.x * area;
  const double* place = workspace + blockIdx.x * area + inside;
  double total = 0.0;
  for (int split = 0; split < plan.splits; ++split) total += place[split * step];
  const std::int64_t group = blockIdx.x / plan.pairs;
  const int tiles = static_cast<int>((columns + plan.tile - 1) / plan.tile);
  const TilePair pair = tile_pair(plan.first_pair + blockIdx.x % plan.pairs, tiles);
  const std::int64_t row = static_cast<std::int64_t>(pair.row) * plan.tile + inside / plan.tile;
  const std::int64_t column =
      static_cast<std::int64_t>(pair.column) * plan.tile + inside % plan.tile;
  if (column >= columns || row > column || row < first_row || row >= first_row + rows) return;
  gram_out[(group * rows + row - first_row) * columns + column] += total;
}

// mean[g][f] over the first `count` patches. Grid: (parts of d, groups).
__global__ void __launch_bounds__(kThreads)
    mean_kernel(PatchGram gram, std::int64_t count, float* mean) {
  const std::int64_t d = features_of(gram);
  const std::int64_t feature = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (feature >= d) return;
  const int group = static_cast<int>(blockIdx.y);
  const PatchColumn column = column_of_feature(gram, group, feature);
  double total = 0.0;
  for (std::int64_t p = 0; p < count; ++p) {
    const PatchRow row = row_of_patch(gram, p);
    if (!has_patch(row.label)) continue;
    const int outer = tap_offset(gram, row, column.outer);
    const int inner = tap_offset(gram, row, column.inner);
    if ((outer | inner) < 0) continue;
    const std::int64_t offset = row.offset + column.offset + outer + inner;
    total += element_at(gram, offset);
  }
  mean[group * d + feature] = static_cast<float>(total / static_cast<double>(count));
}

void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument("patch_gram: " + what);
}

// Whether neighboring features can be read four at a time: they are neighboring channels.
bool reads_packs(const PatchGram& gram) {
  const std::int64_t bytes = gram.element_type == kFloat32 ? 4 : 2;
  bool aligned = reinterpret_cast<std::uintptr_t>(gram.x) % (4 * bytes) == 0;
  aligned &= gram.entry_stride % 4 == 0;
  for (const std::int64_t stride : gram.axis_stride) aligned &= stride % 4 == 0;
  return aligned && gram.tap_major && gram.channel_stride == 1 && gram.channels % 4 == 0;
}

}  // namespace

void check_patch_gram(const PatchGram& gram) {
  const auto text = [](std::int64_t value) { return std::to_string(value); };
  require(gram.x != nullptr, "x is a null pointer");
  require(gram.element_type >= kFloat32 && gram.element_type <= kFloat16,
          "element_type must be 0 (float32), 1 (bfloat16) or 2 (float16)");
  require(gram.n >= 1 && gram.n <= kMaxPatches, "n must be in [1, 2^40], got " + text(gram.n));
  require(gram.groups >= 1 && gram.groups <= 65535, "groups must be in [1, 65535]");
  require(gram.channels >= 1, "channels must be positive");
  require(gram.entry_stride >= 0 && gram.channel_stride >= 0, "strides must not be negative");
  std::int64_t span = 0, width = 1;
  constexpr std::int64_t kMaxInt = 0x7FFFFFFF;
  for (int a = 0; a < kAxes; ++a) {
    const PatchAxis& axis = gram.axis[a];
    require(axis.in_size >= 1 && axis.in_size <= kMaxInt && gram.axis_stride[a] >= 0 &&
                axis.stride >= 1 && axis.dilation >= 1 && gram.kernel[a] >= 1 &&
                gram.out_size[a] >= 1 && gram.out_size[a] <= kMaxInt,
            "a size or stride of an axis is out of range");
    require(axis.mode >= kZeros && axis.mode <= kCircular, "unknown padding mode");
    span += (axis.in_size - 1) * gram.axis_stride[a];
    width *= gram.out_size[a];
  }
  require(span < kMaxInt, "one plane must span fewer than 2^31 elements, got " + text(span));
  require(tap_slots(gram) <= kMaxTapSlots, "kernel[0] * kernel[1] + kernel[2] must be at most " +
                                               text(kMaxTapSlots) + ", got " +
                                               text(tap_slots(gram)));
  require(columns_of(gram) <= kMaxColumns, "patch, constant, classes and code have " +
                                               text(columns_of(gram)) + " columns; the limit is " +
                                               text(kMaxColumns));
  require(
      gram.first_row >= 0 && gram.rows >= 0 && gram.first_row + rows_of(gram) <= columns_of(gram),
      "first_row and rows must lie within the columns of the Gram matrix");
  require((gram.entry == nullptr) == (gram.position == nullptr),
          "entry and position must be given together");
  require(gram.entries >= 1, "entries must be positive");
  require(gram.entry == nullptr || gram.status != nullptr, "a list of patches needs status");
  require(gram.entries_per_sample >= 1 && gram.draws >= 0 && gram.draws < (std::int64_t{1} << 32),
          "entries_per_sample must be positive and draws in [0, 2^32)");
  require(gram.draws == 0 || gram.entries_per_sample * width <= (std::int64_t{1} << 32),
          "a sample must have at most 2^32 positions to draw from");
  require((gram.classes > 0) == (gram.labels != nullptr), "labels need classes, and the reverse");
  require((gram.codes > 0) == (gram.code != nullptr), "code needs its number of columns");
  require(gram.labels == nullptr || gram.status != nullptr, "labels need status");
}

PatchGramPlan plan_patch_gram(const PatchGram& gram, int multiprocessors, int tile) {
  check_patch_gram(gram);
  require(multiprocessors >= 1, "multiprocessors must be positive");
  require(tile == 0 || tile == 32 || tile == 64 || tile == 128, "tile must be 0, 32, 64 or 128");
  const std::int64_t columns = columns_of(gram);
  PatchGramPlan plan;
  // The larger tile reads each number for more products, and pads more where D is small.
  plan.tile = tile != 0 ? tile : columns <= 32 ? 32 : columns <= 192 ? 64 : 128;
  const std::int64_t tiles = (columns + plan.tile - 1) / plan.tile;
  const std::int64_t above = gram.first_row / plan.tile;  // rows of tiles that are not wanted
  const std::int64_t last = (gram.first_row + rows_of(gram) + plan.tile - 1) / plan.tile;
  plan.first_pair = above * tiles - above * (above - 1) / 2;
  plan.pairs = last * tiles - last * (last - 1) / 2 - plan.first_pair;
  const std::int64_t blocks = plan.pairs * gram.groups;
  require(blocks < 0x7FFFFFFF, "too many tiles and groups for one launch");
  const std::int64_t wanted = static_cast<std::int64_t>(multiprocessors) * kBlocksPerMultiprocessor;
  // Rounded down: one block more than the multiprocessors take costs another turn of all.
  std::int64_t splits = wanted / blocks > 1 ? wanted / blocks : 1;
  const std::int64_t most = (gram.n + kLeastPatchesOfSplit - 1) / kLeastPatchesOfSplit;
  splits = splits < most ? splits : most;
  plan.splits = static_cast<int>(splits < 65535 ? splits : 65535);
  plan.workspace =
      blocks * plan.splits * plan.tile * plan.tile * static_cast<std::int64_t>(sizeof(double));
  return plan;
}

void patch_gram(const PatchGram& gram, const PatchGramPlan& plan, Arithmetic arithmetic,
                double* gram_out, double* workspace, cudaStream_t stream) {
  check_patch_gram(gram);
  const bool packed = reads_packs(gram);
  switch (arithmetic) {
    case k3xTF32:
      launch_tiles<k3xTF32>(gram, plan, packed, workspace, stream);
      break;
    case kTF32:
      launch_tiles<kTF32>(gram, plan, packed, workspace, stream);
      break;
    case kFFMA:
      launch_tiles<kFFMA>(gram, plan, packed, workspace, stream);
      break;
    default:
      throw std::invalid_argument("patch_gram: unknown arithmetic");
  }
  const std::int64_t area = static_cast<std::int64_t>(plan.tile) * plan.tile;
  const dim3 grid(static_cast<unsigned>(plan.pairs * gram.groups),
                  static_cast<unsigned>((area + kThreads - 1) / kThreads));
  launch("patch_gram's sum over splits", reduce_kernel, grid, dim3(kThreads), stream, workspace,
         plan, columns_of(gram), gram.first_row, rows_of(gram), gram_out);
}

void patch_mean(const PatchGram& gram, std::int64_t count, float* mean, cudaStream_t stream) {
  check_patch_gram(gram);
  require(count >= 1 && count <= gram.n, "count must be in [1, n]");
  const dim3 grid(static_cast<unsigned>((features_of(gram) + kThreads - 1) / kThreads),
                  static_cast<unsigned>(gram.groups));
  launch("patch_mean", mean_kernel, grid, dim3(kThreads), stream, gram, count, mean);
}

}  // namespace sylvinit
