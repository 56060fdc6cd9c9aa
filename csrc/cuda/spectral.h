// The elementwise parts of the symmetric Sylvester solve on the GPU: matrices scaled to unit size,
// and the division by a_i + b_j. All arrays are row-major, contiguous and on the device.
//
// Each function has a reference for the host of the same signature in spectral_reference.h.
// Reductions run in a fixed order: the same input gives the same bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "host_device.h"

namespace sylvinit {

constexpr int kSpectralThreads = 128;
constexpr std::int64_t kSpectralSlice = 32 * kSpectralThreads;
constexpr std::int64_t kMostSpectralSlices = 1024;

// Blocks that share a matrix of that many entries.
SYLVINIT_HD std::int64_t spectral_slices(std::int64_t entries) {
  const std::int64_t slices = (entries + kSpectralSlice - 1) / kSpectralSlice;
  return slices < 1 ? 1 : slices < kMostSpectralSlices ? slices : kMostSpectralSlices;
}

// scaled = a / s for each matrix, s its largest |a_ij|, or 1 if that is 0. Where an entry is NaN or
// infinite, s is NaN and `scaled` is 0: eigenvalue routines then see nothing they cannot take.
struct UnitScale {
  std::int64_t batch, entries;
  const double* a;  // (batch, entries)
  double* scaled;   // (batch, entries), may be a
  double* scale;    // (batch)
  double* partial;  // (batch, slices): workspace
};
void scale_to_unit(const UnitScale& p, cudaStream_t stream);

// y_ij = c_ij / (a_i + b_j) with max(a_i, 0) and max(b_j, 0) for a_i and b_j, and y_ij = 0 where
// neither a_i > threshold_a nor b_j > threshold_b. Eigenvalues that are NaN count as significant,
// so that they are seen in y.
struct PositiveDivision {
  std::int64_t batch, k, d;
  const double* c;            // (batch, k, d)
  const double* a;            // (batch, k)
  const double* b;            // (batch, d)
  const double* threshold_a;  // (batch)
  const double* threshold_b;  // (batch)
  double* y;                  // (batch, k, d), may be c
  std::uint8_t* keep;         // (batch, k, d): 1 where y is c / (a + b)
};
void divide_positive(const PositiveDivision& p, cudaStream_t stream);

}  // namespace sylvinit
