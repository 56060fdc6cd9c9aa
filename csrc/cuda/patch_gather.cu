#include <cstdint>

#include "element.cuh"
#include "launch.h"
#include "patch_gather.h"
#include "patch_gram.h"
#include "patch_layout.cuh"
#include "patch_round.cuh"

// Numbers in memory at a time, 256 MiB; tests set it to a few.
#ifndef SYLVINIT_GATHERED_NUMBERS
#define SYLVINIT_GATHERED_NUMBERS (1 << 26)
#endif

namespace sylvinit {

namespace {

constexpr int kThreads = 256;
constexpr int kAcross = 32;                   // threads along the columns: they write neighbors
constexpr int kLanes = kThreads / kAcross;    // patches at a time
constexpr int kColumns = 128, kPatches = 64;  // of a block
constexpr std::int64_t kMostNumbers = SYLVINIT_GATHERED_NUMBERS;
// With fewer tiles across a number is read once or twice anyway.
constexpr std::int64_t kLeastTiles = 3;

// Grid: (parts of the patches, parts of the columns, groups).
__global__ void __launch_bounds__(kThreads, 2)
    gather_kernel(PatchGram gram, std::int64_t stride, std::int64_t first, std::int64_t count,
                  float* rows) {
  __shared__ Round<kThreads> round;
  const int thread = static_cast<int>(threadIdx.x), group = static_cast<int>(blockIdx.z);
  const int slots = tap_slots(gram), fitting = patches_of_round<kThreads>(slots);
  const int per_round = fitting < kPatches ? fitting : kPatches;
  const std::int64_t d = features_of(gram), begin = blockIdx.y * std::int64_t{kColumns};
  const std::int64_t columns = begin + kColumns < stride ? begin + kColumns : stride;
  const std::int64_t last = (blockIdx.x + std::int64_t{1}) * kPatches;
  const std::int64_t end = last < count ? last : count;
  for (std::int64_t p = blockIdx.x * std::int64_t{kPatches}; p < end; p += per_round) {
    const int ours = end - p < per_round ? static_cast<int>(end - p) : per_round;
    choose_round(gram, ours, [&](int i) { return first + p + i; }, round);
    for (std::int64_t f = begin + thread % kAcross; f < columns; f += kAcross) {
      const bool is_feature = f < d, is_code = f >= d && f < d + gram.codes;
      const PatchColumn column = column_of_feature(gram, group, is_feature ? f : 0);
      const float shift = is_feature && gram.shift != nullptr ? gram.shift[group * d + f] : 0.0f;
#pragma unroll 4
      for (int r = thread / kAcross; r < ours; r += kLanes) {
        float value = 0.0f;
        if (has_patch(round.row[r].label)) {
          if (is_feature) {
            const std::int64_t offset =
                element_offset(round.row[r].offset, round.tap + r * slots, column);
            value = (offset < 0 ? 0.0f : element_at(gram, offset)) - shift;
          } else if (is_code) {
            value = gram.code[(first + p + r) * gram.code_stride + f - d];
          }
        }
        rows[((p + r) * gram.groups + group) * stride + f] = value;
      }
    }
    __syncthreads();  // the round is read no more
  }
}

}  // namespace

PatchRows plan_rows(const PatchGram& gram, bool packed, std::int64_t tiles) {
  PatchRows plan;
  if (packed || tiles < kLeastTiles) return plan;
  plan.stride = (products_of(gram) + 3) / 4 * 4;
  const std::int64_t fitting = kMostNumbers / (plan.stride * gram.groups) / kChunk * kChunk;
  const std::int64_t most = fitting > kChunk ? fitting : kChunk;
  plan.patches = most < gram.n ? most : gram.n;
  return plan;
}

void gather_rows(const PatchGram& gram, const PatchRows& plan, std::int64_t first,
                 std::int64_t count, float* rows, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((count + kPatches - 1) / kPatches),
                  static_cast<unsigned>((plan.stride + kColumns - 1) / kColumns),
                  static_cast<unsigned>(gram.groups));
  launch("patch_gram's rows", gather_kernel, grid, dim3(kThreads), stream, gram, plan.stride, first,
         count, rows);
}

PatchGram gathered_rows(const PatchGram& gram, const PatchRows& plan, std::int64_t count,
                        const float* rows) {
  PatchGram of_rows;
  of_rows.x = rows;
  of_rows.groups = gram.groups;
  of_rows.channels = plan.stride;  // as many tiles as without the padding, which is of zeros
  of_rows.entry_stride = plan.stride * gram.groups;
  of_rows.entries = of_rows.n = count;
  return of_rows;
}

}  // namespace sylvinit
