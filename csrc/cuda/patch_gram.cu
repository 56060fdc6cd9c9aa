// Limits, plan and launches of patch_gram, and the sum over splits.
#include <cstdint>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "patch_gather.h"
#include "patch_gram.h"
#include "patch_gram_tiles.cuh"
#include "patch_layout.cuh"
#include "patch_sums.h"

namespace sylvinit {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxColumns = 1 << 16;
constexpr std::int64_t kMaxPatches = std::int64_t{1} << 34;

// gram_out[g] += the tiles of all splits, in their order, the sums of columns and the number of
// patches. Grid: (pairs * groups, parts of a tile).
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(PatchGram gram, PatchGramPlan plan, const double* workspace, double* gram_out) {
  const std::int64_t area = static_cast<std::int64_t>(plan.tile) * plan.tile;
  const std::int64_t inside = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  const std::int64_t group = blockIdx.x / plan.pairs, index = blockIdx.x % plan.pairs;
  const std::int64_t products = products_of(gram), d = features_of(gram);
  const int tiles = static_cast<int>((products + plan.tile - 1) / plan.tile);
  const TilePair pair = tile_pair(plan.first_pair + index, tiles);
  const std::int64_t columns = columns_of(gram), rows = rows_of(gram);
  auto add = [&](std::int64_t row, std::int64_t column, double value) {
    if (row < gram.first_row || row >= gram.first_row + rows) return;
    gram_out[(group * rows + row - gram.first_row) * columns + column] += value;
  };
  auto total = [&](const double* place, std::int64_t step) {
    double sum = 0.0;
    for (int split = 0; split < plan.splits; ++split) sum += place[split * step];
    return sum;
  };
  if (inside == 0 && index == 0) add(d, d, static_cast<double>(gram.n));
  if (pair.row == pair.column && inside < plan.tile) {
    const std::int64_t f = static_cast<std::int64_t>(pair.row) * plan.tile + inside;
    const std::int64_t step = static_cast<std::int64_t>(gram.groups) * tiles * plan.tile;
    const double* place = workspace + plan.column_sums + group * tiles * plan.tile + f;
    if (f < d) add(f, d, total(place, step));
  }
  if (inside >= area) return;
  const std::int64_t row = static_cast<std::int64_t>(pair.row) * plan.tile + inside / plan.tile;
  const std::int64_t column =
      static_cast<std::int64_t>(pair.column) * plan.tile + inside % plan.tile;
  if (column >= products || row > column) return;
  add(place_of_product(gram, row), place_of_product(gram, column),
      total(workspace + blockIdx.x * area + inside, gridDim.x * area));
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
  require(gram.n >= 1 && gram.n <= kMaxPatches, "n must be in [1, 2^34], got " + text(gram.n));
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
  require((gram.labels == nullptr) == (gram.order == nullptr) &&
              (gram.order == nullptr) == (gram.starts == nullptr),
          "labels need their owners by class, order and starts, and the reverse");
}

namespace {

TileKernel tile_kernel_of(Arithmetic arithmetic, int tile, bool packed) {
  switch (arithmetic) {
    case k3xTF32:
      return choose_tile_kernel<k3xTF32>(tile, packed);
    case kTF32:
      return choose_tile_kernel<kTF32>(tile, packed);
    case kFFMA:
      return choose_tile_kernel<kFFMA>(tile, packed);
    default:
      throw std::invalid_argument("patch_gram: unknown arithmetic");
  }
}

// Parts of the patches for which so many blocks, of which `resident` run at a time, are expected to
// be done first. In units of the time that a chunk takes; the constants are estimates for an H100,
// from counted instructions and bytes, and not measured.
int choose_splits(std::int64_t blocks, std::int64_t patches, std::int64_t resident) {
  constexpr double kBegin = 8.0;     // a block's first round, and writing its tile
  constexpr double kTraffic = 14.0;  // tiles of as many blocks as run at a time, to memory and back
  constexpr std::int64_t kMostWaves = 4;
  // Beyond that a plan does not depend on the number of patches.
  constexpr std::int64_t kMostChunks = 1 << 14;
  std::int64_t chunks = (patches + kChunk - 1) / kChunk;
  chunks = chunks < kMostChunks ? chunks : kMostChunks;
  std::int64_t most = kMostWaves * resident / blocks;
  most = most > 2 ? most : 2;
  most = most < chunks ? most : chunks;
  std::int64_t best = 1;
  double least = 0.0;
  for (std::int64_t splits = 1; splits <= most && splits < 65536; ++splits) {
    const std::int64_t waves = (blocks * splits + resident - 1) / resident;
    const std::int64_t longest = (chunks + splits - 1) / splits;
    const double share = static_cast<double>(blocks * splits) / static_cast<double>(resident);
    const double time =
        static_cast<double>(waves) * (static_cast<double>(longest) + kBegin) + kTraffic * share;
    if (splits == 1 || time < least) {
      best = splits;
      least = time;
    }
  }
  return static_cast<int>(best);
}

}  // namespace

PatchGramPlan plan_patch_gram(const PatchGram& gram, Arithmetic arithmetic, int multiprocessors,
                              int tile) {
  check_patch_gram(gram);
  require(multiprocessors >= 1, "multiprocessors must be positive");
  require(tile == 0 || tile == 32 || tile == 64 || tile == 128, "tile must be 0, 32, 64 or 128");
  const std::int64_t products = products_of(gram);
  PatchGramPlan plan;
  // The larger tile reads each number for more products, and pads more where there are few columns.
  plan.tile = tile != 0 ? tile : products <= 32 ? 32 : products <= 192 ? 64 : 128;
  const std::int64_t tiles = (products + plan.tile - 1) / plan.tile;
  std::int64_t first = products_before(gram, gram.first_row);
  std::int64_t end = products_before(gram, gram.first_row + rows_of(gram));
  if (first == end) {  // the constant or labels alone: any tile will do
    first = first < products ? first : products - 1;
    end = first + 1;
  }
  const std::int64_t above = first / plan.tile;  // rows of tiles that are not wanted
  const std::int64_t last = (end + plan.tile - 1) / plan.tile;
  plan.first_pair = above * tiles - above * (above - 1) / 2;
  plan.pairs = last * tiles - last * (last - 1) / 2 - plan.first_pair;
  const std::int64_t blocks = plan.pairs * gram.groups;
  require(blocks < 0x7FFFFFFF, "too many tiles and groups for one launch");
  const bool packed = reads_packs(gram);
  plan.rows = plan_rows(gram, packed, tiles);
  const bool gathered = plan.rows.patches > 0;
  const TileKernel chosen = tile_kernel_of(arithmetic, plan.tile, packed || gathered);
  const std::int64_t resident =
      static_cast<std::int64_t>(multiprocessors) * resident_blocks(chosen.kernel, chosen.threads);
  plan.splits = choose_splits(blocks, gathered ? plan.rows.patches : gram.n, resident);
  plan.sums = sums_beside(gram, multiprocessors);
  const std::int64_t edge = plan.tile;
  plan.column_sums = plan.splits * blocks * edge * edge;
  plan.class_sums = plan.column_sums + plan.splits * gram.groups * tiles * edge;
  plan.rows_place = (plan.class_sums + plan.sums.workspace + 1) / 2 * 2;  // packs are aligned
  const std::int64_t numbers = plan.rows.patches * gram.groups * plan.rows.stride;
  plan.workspace =
      (plan.rows_place + (numbers + 1) / 2) * static_cast<std::int64_t>(sizeof(double));
  return plan;
}

void patch_gram(const PatchGram& gram, const PatchGramPlan& plan, Arithmetic arithmetic,
                double* gram_out, double* workspace, cudaStream_t stream) {
  check_patch_gram(gram);
  const bool gathered = plan.rows.patches > 0;
  const TileKernel chosen = tile_kernel_of(arithmetic, plan.tile, gathered || reads_packs(gram));
  const auto blocks = static_cast<unsigned>(plan.pairs * gram.groups);
  const std::int64_t area = static_cast<std::int64_t>(plan.tile) * plan.tile;
  const auto parts = static_cast<unsigned>((area + kThreads - 1) / kThreads);
  auto* rows = reinterpret_cast<float*>(workspace + plan.rows_place);
  const std::int64_t at_a_time = gathered ? plan.rows.patches : gram.n;
  for (std::int64_t first = 0; first < gram.n; first += at_a_time) {
    PatchGram part = gram, source = gram;
    if (gathered) {
      part.n = gram.n - first < at_a_time ? gram.n - first : at_a_time;
      gather_rows(gram, plan.rows, first, part.n, rows, stream);
      source = gathered_rows(gram, plan.rows, part.n, rows);
    }
    launch("patch_gram", chosen.kernel, dim3(blocks, static_cast<unsigned>(plan.splits)),
           dim3(static_cast<unsigned>(chosen.threads)), stream, source, plan, workspace);
    launch("patch_gram's sum over splits", reduce_kernel, dim3(blocks, parts), dim3(kThreads),
           stream, part, plan, static_cast<const double*>(workspace), gram_out);
  }
  add_sums(gram, plan.sums, gram_out, workspace + plan.class_sums, stream);
}

}  // namespace sylvinit
