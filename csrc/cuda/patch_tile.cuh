// A block's slice of Z on its way from the activation to shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "element.cuh"
#include "patch_layout.cuh"
#include "patch_round.cuh"

namespace sylvinit {

// Columns of padding after each patch, so that the 8 x 4 numbers of a fragment lie in 32 banks.
constexpr int kPadding = 8;

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
      marks_ = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool there = has_patch(round.row[at + row(i)].label);
        const float* code = gram.code + (first + row(i)) * gram.code_stride;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const bool has = there && beside_ + v < gram.codes;
          words_[i * V + v] = has ? bits_of_float(code[beside_ + v]) : 0u;
        }
      }
    } else if (gram.element_type == kFloat32) {
      read<std::uint32_t, V>(gram, round, at);
    } else if constexpr (V == 4) {
      read<std::uint32_t, 2>(gram, round, at);
    } else {
      read<std::uint16_t, 1>(gram, round, at);
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
  static_assert(kRows <= 16, "a bit of marks_ for each, twice");

  static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kStride; }

  // V numbers of each patch as so many words, as they lie: taking them apart would wait for them.
  template <class Word, int Words>
  __device__ void read(const PatchGram& gram, const Round<Threads>& round, int at) {
    constexpr int kBytes = sizeof(Word) * Words / V;
    const int slots = tap_slots(gram);
    marks_ = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = at + row(i);
      const std::int64_t offset =
          element_offset(round.row[r].offset, round.tap + r * slots, column_);
      marks_ |= (offset < 0 ? 1u : 0u) << i;
      marks_ |= (has_patch(round.row[r].label) ? 0u : 0x10000u) << i;
      // A load for everyone costs less than a branch around it; element 0 is always there.
      const char* address = static_cast<const char*>(gram.x) + (offset < 0 ? 0 : offset) * kBytes;
      const auto pack = *reinterpret_cast<const Pack<Word, Words>*>(address);
#pragma unroll
      for (int w = 0; w < Words; ++w) words_[i * V + w] = pack.item[w];
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
        const float value = marks_ >> i & 1 ? 0.0f : number<kType>(i, v);
        pack.item[v] = marks_ >> i & 0x10000 ? 0.0f : value - shift[v];
      }
      *reinterpret_cast<Pack<float, V>*>(&shared[row(i)][across]) = pack;
    }
  }

  template <ElementType kType>
  __device__ float number(int i, int v) const {
    if constexpr (kType == kFloat32 || V == 1) return float_of<kType>(words_[i * V + v]);
    return float_of<kType>(words_[i * V + v / 2] >> (v % 2 * 16) & 0xFFFFu);
  }

  int beside_;  // columns from the first one beside the patch; negative: a feature of the patch
  PatchColumn column_;
  const float* shift_;              // read again for each chunk: a pointer takes fewer registers
  std::uint32_t words_[kRows * V];  // as they were read
  unsigned marks_;  // for each patch a bit for a structural zero, and one for no patch
};

}  // namespace sylvinit
