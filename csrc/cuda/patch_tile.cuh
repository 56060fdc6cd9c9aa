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

// Where the patches of a chunk lie.
struct ChunkPlaces {
  std::int64_t offset[kChunk];
  int label[kChunk];
  int taps[kChunk][kMaxTapSlots];
};

// Fills the places of a chunk from the rows of its patches.
__device__ inline void find_places(const PatchGram& gram, const PatchRow* rows,
                                   ChunkPlaces& places) {
  const int slots = tap_slots(gram), threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * slots; i += threads) {
    const int r = i / slots, slot = i - r * slots;
    places.taps[r][slot] = tap_offset(gram, rows[r], slot);
    if (slot > 0) continue;
    places.offset[r] = rows[r].offset;
    places.label[r] = rows[r].label;
  }
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

  // Asks for the numbers of one chunk. Nothing here depends on them, so that they are on their way
  // until `put`.
  __device__ void take(const PatchGram& gram, const ChunkPlaces& places, std::int64_t first) {
    if (beside_ >= 0) {
      outside_ = missing_ = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          bits_[i * V + v] =
              bits_of_float(beside_patch(gram, places.label[row(i)], first + row(i), beside_ + v));
        }
      }
    } else if (gram.element_type == kFloat32) {
      read<std::uint32_t>(gram.x, places);
    } else {
      read<std::uint16_t>(gram.x, places);
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
  __device__ void read(const void* x, const ChunkPlaces& places) {
    outside_ = missing_ = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = row(i);
      const std::int64_t offset = element_offset(places.offset[r], places.taps[r], column_);
      outside_ |= (offset < 0 ? 1u : 0u) << i;
      missing_ |= (has_patch(places.label[r]) ? 0u : 1u) << i;
      // A load for everyone costs less than a branch around it; element 0 is always there.
      const auto* address = static_cast<const Bits*>(x) + (offset < 0 ? 0 : offset);
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
