// Application of the reflectors of a small tridiagonal reduction, one after the other: LAPACK's
// blocked code spends most of its time on setting up blocks there.
#pragma once

#include <algorithm>
#include <cstddef>

#include "lapack.h"
#include "vectorize.h"

namespace sylvinit {

// Up to this size; between 96 and 128 the two take the same time (AVX-512, OpenBLAS 0.3.30).
constexpr int kUnblockedReflectors = 96;

// rows (size x n, row-major) -= factor * v (v^H rows) for v = (1, tail).
SYLVINIT_VECTORIZED inline void reflect(int size, int n, double factor, const double* tail,
                                        double* rows) {
  double product[kUnblockedReflectors];
  for (int j = 0; j < n; ++j) product[j] = rows[j];
  for (int i = 1; i < size; ++i)
    for (int j = 0; j < n; ++j) product[j] += tail[i - 1] * rows[i * n + j];
  for (int j = 0; j < n; ++j) product[j] *= factor;
  for (int j = 0; j < n; ++j) rows[j] -= product[j];
  for (int i = 1; i < size; ++i)
    for (int j = 0; j < n; ++j) rows[i * n + j] -= tail[i - 1] * product[j];
}

inline void reflect(int size, int n, Complex factor, const Complex* tail, Complex* rows) {
  Complex product[kUnblockedReflectors];
  for (int j = 0; j < n; ++j) product[j] = rows[j];
  for (int i = 1; i < size; ++i)
    for (int j = 0; j < n; ++j) product[j] += std::conj(tail[i - 1]) * rows[i * n + j];
  for (int j = 0; j < n; ++j) product[j] *= factor;
  for (int j = 0; j < n; ++j) rows[j] -= product[j];
  for (int i = 1; i < size; ++i)
    for (int j = 0; j < n; ++j) rows[i * n + j] -= tail[i - 1] * product[j];
}

inline double conjugate(double x) { return x; }
inline Complex conjugate(Complex x) { return std::conj(x); }

// c (m x n) <- H c, or H^H c with adjoint, H from reduce_to_tridiagonal. Returns LAPACK's info.
template <class S>
int multiply_by_reflectors(bool adjoint, int m, int n, const S* a, const S* tau, S* c) {
  if (std::max(m, n) > kUnblockedReflectors) return apply_reflectors(adjoint, m, n, a, tau, c);
  // Row-major, so that the loops over right sides are contiguous.
  S rows[kUnblockedReflectors * kUnblockedReflectors];
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < m; ++i) rows[i * n + j] = c[i + j * m];
  for (int step = 0; step + 1 < m; ++step) {
    const int i = adjoint ? step : m - 2 - step;
    const S factor = adjoint ? conjugate(tau[i]) : tau[i];
    const S* tail = a + i + 2 + static_cast<std::ptrdiff_t>(i) * m;
    reflect(m - i - 1, n, factor, tail, rows + (i + 1) * n);
  }
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < m; ++i) c[i + j * m] = rows[i * n + j];
  return 0;
}

}  // namespace sylvinit
