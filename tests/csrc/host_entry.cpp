// The host+device inline functions of csrc/, exported over arrays for ctypes.
#include <cstdint>

#include "patch_index.cuh"
#include "philox.cuh"

extern "C" {

// counters and words: (n, 4), row-major.
void philox4x32_10(const std::uint32_t* counters, std::int64_t n, std::uint32_t key0,
                   std::uint32_t key1, std::uint32_t* words) {
  for (std::int64_t i = 0; i < n; ++i) {
    sylvinit::Philox4x32 counter;
    for (int j = 0; j < 4; ++j) counter.word[j] = counters[4 * i + j];
    const sylvinit::Philox4x32 block = sylvinit::philox4x32_10(counter, key0, key1);
    for (int j = 0; j < 4; ++j) words[4 * i + j] = block.word[j];
  }
}

// drawn: (n, draws), row-major.
void sample_positions(const std::uint64_t* samples, std::int64_t n, std::uint32_t draws,
                      std::uint32_t key0, std::uint32_t key1, std::uint64_t positions,
                      std::uint64_t* drawn) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::uint32_t draw = 0; draw < draws; ++draw) {
      drawn[i * draws + draw] = sylvinit::sample_position(key0, key1, samples[i], draw, positions);
    }
  }
}

// table: (out_size, taps), row-major.
void patch_input_indices(std::int64_t in_size, std::int64_t stride, std::int64_t dilation,
                         std::int64_t pad_before, int mode, bool transposed, std::int64_t out_size,
                         std::int64_t taps, std::int64_t* table) {
  const sylvinit::PatchAxis axis{in_size, stride, dilation, pad_before, mode, transposed};
  for (std::int64_t out = 0; out < out_size; ++out) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      table[out * taps + tap] = sylvinit::patch_input_index(axis, out, tap);
    }
  }
}

}  // extern "C"
