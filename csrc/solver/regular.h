// Whether an equation can be solved as a Hermitian one without a second look at its values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "lapack.h"

namespace sylvinit {

// No NaN and no infinity: no exponent of ones only, which is looked for without branches.
inline bool all_finite(std::ptrdiff_t size, const double* x) {
  constexpr std::uint64_t kMagnitude = 0x7fffffffffffffff, kLowest = 0x0010000000000000;
  std::uint64_t found = 0;
  for (std::ptrdiff_t i = 0; i < size; ++i) {
    std::uint64_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    found |= (bits & kMagnitude) + kLowest;  // carries into the sign
  }
  return (found >> 63) == 0;
}

inline bool all_finite(std::ptrdiff_t size, const Complex* x) {
  return all_finite(2 * size, reinterpret_cast<const double*>(x));
}

inline bool mirrored(double x, double y) { return x == y; }
inline bool mirrored(Complex x, Complex y) { return x == std::conj(y); }

// Hermitian to the bit.
template <class S>
bool is_hermitian(std::ptrdiff_t n, const S* a) {
  constexpr std::ptrdiff_t kTile = 32;  // both a tile and its mirror image stay in the cache
  for (std::ptrdiff_t r = 0; r < n; r += kTile) {
    for (std::ptrdiff_t c = 0; c <= r; c += kTile) {
      bool same = true;
      for (std::ptrdiff_t i = r; i < std::min(r + kTile, n); ++i)
        for (std::ptrdiff_t j = c; j < std::min(c + kTile, i + 1); ++j)
          same &= mirrored(a[i * n + j], a[j * n + i]);
      if (!same) return false;
    }
  }
  return true;
}

// A (k x k) and B (d x d) Hermitian to the bit, and all entries finite.
template <class S>
bool is_regular(std::ptrdiff_t k, std::ptrdiff_t d, const S* a, const S* b, const S* q) {
  return all_finite(k * k, a) && all_finite(d * d, b) && all_finite(k * d, q) &&
         is_hermitian(k, a) && is_hermitian(d, b);
}

}  // namespace sylvinit
