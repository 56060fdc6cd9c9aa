// A block's slice of Z on its way from the activation to shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "element.cuh"
#include "patch_layout.cuh"

namespace sylvinit {

// Patches that are in shared memory at a time: two steps of the tensor cores.
constexpr int kChunk = 16;
// Columns of padding after each patch, so that the 8 x 4 numbers of a fragment lie in 32 banks.
constexpr int kPadding = 8;

// Tap offsets that a block holds at a time.
constexpr int kHeldTaps = kChunk * static_cast<int>(kMaxTapSlots);

// Patches that a block has chosen at once, and where they lie.
template <int Threads>
struct Round {
  PatchRow row[Threads];
  int tap[kHeldTaps];  // tap_slots of each patch
};

// Patches of a round: one for each thread as far as their offsets fit, in whole chunks. Choosing a
// patch takes hundreds of instructions that wait for each other, so many threads do it together.
template <int Threads>
__device__ int patches_of_round(int slots) {
  const int fitting = kHeldTaps / slots / kChunk * kChunk;
  return fitting < Threads ? fitting : Threads;
}

// Fills a round with `count` patches, patch(0), patch(1), ... All threads of the block call it,
// when none of them reads the round any more.
template <int Threads, class PatchOf>
__device__ void choose_round(const PatchGram& gram, int count, const PatchOf& patch,
                             Round<Threads>& round) {
  const int thread = static_cast<int>(threadIdx.x), slots = tap_slots(gram);
  if (thread < count) {
    const PatchRow row = row_of_patch(gram, patch(thread));
    if (row.label == kBadLabel) atomicOr(gram.status, kLabelOutOfRange);
    if (row.label == kBadPatch) atomicOr(gram.status, kPatchOutOfRange);
    round.row[thread] = row;
  }
  __syncthreads();
  // From one offset of a thread to its next, without a division for each.
  const int rows = Threads / slots, rest = Threads - rows * slots;
  int r = thread / slots, slot = thread - r * slots;
  while (r < count) {
    round.tap[r * slots + slot] = tap_offset(gram, round.row[r], slot);
    r += rows;
    slot += rest;
    if (slot >= slots) {
      slot -= slots;
      ++r;
    }
  }
  __syncthreads();
}

// The columns [first, first + Tile) of Z that one thread carries: V neighboring ones, of
// kChunk / kStride patches.
template <int Tile, int Threads, int V>
class TileColumns {
 public:
  __device__ void start(const PatchGram& gram, int group, std::int64_t first) {
    const std::int64_t d = features_of(gram);
    const std::int64_t feature = first + static_cast<int>(threadIdx.x) % kAcross * V;
    beside_ = static_cast<int>(feature - d);
    column_ = column_of_feature(gram, group, beside_ < 0 ? feature : 0);
    const bool shifted = gram.shift != nullptr && beside_ < 0;
    shift_ = shifted ? gram.shift + group * d + feature : nullptr;
  }

  // Asks for the numbers of the chunk that begins with patch `at` of the round and patch `first` of
  // all. Nothing here depends on them, so that they are on their way until `put`.
  __device__ void take(const PatchGram& gram, const Round<Threads>& round, int at,
                       std::int64_t first) {
    if (beside_ >= 0) {
      outside_ = missing_ = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int label = round.row[at + row(i)].label;
          bits_[i * V + v] = bits_of_float(beside_patch(gram, label, first + row(i), beside_ + v));
        }
      }
    } else if (gram.element_type == kFloat32) {
      read<std::uint32_t>(gram, round, at);
    } else {
      read<std::uint16_t>(gram, round, at);
    }
  }

  // The numbers about the shift, as float32. The threads of a warp write neighboring columns.
  __device__ void put(const PatchGram& gram, float (*shared)[Tile + kPadding]) const {
    if (beside_ >= 0 || gram.element_type == kFloat32) {
      write<kFloat32>(shared);
    } else if (gram.element_type == kBFloat16) {
      write<kBFloat16>(shared);
    } else {
      write<kFloat16>(shared);
    }
  }

 private:
  static constexpr int kAcross = Tile / V;           // threads along the columns
  static constexpr int kStride = Threads / kAcross;  // patches read at a time
  static constexpr int kRows = kChunk / kStride;     // patches of one thread

  static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kStride; }

  template <class Bits>
  __device__ void read(const PatchGram& gram, const Round<Threads>& round, int at) {
    const int slots = tap_slots(gram);
    outside_ = missing_ = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = at + row(i);
      const std::int64_t offset =
          element_offset(round.row[r].offset, round.tap + r * slots, column_);
      outside_ |= (offset < 0 ? 1u : 0u) << i;
      missing_ |= (has_patch(round.row[r].label) ? 0u : 1u) << i;
      // A load for everyone costs less than a branch around it; element 0 is always there.
      const auto* address = static_cast<const Bits*>(gram.x) + (offset < 0 ? 0 : offset);
      const auto pack = *reinterpret_cast<const Pack<Bits, V>*>(address);
#pragma unroll
      for (int v = 0; v < V; ++v) bits_[i * V + v] = pack.item[v];
    }
  }

  template <ElementType kType>
  __device__ void write(float (*shared)[Tile + kPadding]) const {
    const int across = static_cast<int>(threadIdx.x) % kAcross * V;
    float shift[V];
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = shift_ == nullptr ? 0.0f : shift_[v];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Pack<float, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float value = outside_ >> i & 1 ? 0.0f : float_of<kType>(bits_[i * V + v]);
        pack.item[v] = missing_ >> i & 1 ? 0.0f : value - shift[v];
      }
      *reinterpret_cast<Pack<float, V>*>(&shared[row(i)][across]) = pack;
    }
  }

  int beside_;  // columns from the first one beside the patch; negative: a feature of the patch
  PatchColumn column_;
  const float* shift_;             // read again for each chunk: a pointer takes fewer registers
  std::uint32_t bits_[kRows * V];  // as they were read
  unsigned outside_, missing_;     // a bit for each patch: a structural zero, no patch
};

}  // namespace sylvinit
