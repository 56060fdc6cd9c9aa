// What one Sylvester equation is asked with and what is reported about it.
//
// Tensors are row-major and LAPACK is column-major, so everything here is transposed:
//     A X + X B = Q    (k x d, row-major)    is    L Y + Y R = C    (d x k, column-major)
// with L = B^T, R = A^T, C = Q^T and Y = X^T in the same memory.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "lapack.h"

namespace sylvinit {

enum class Status : int {
  ok = 0,
  not_converged = 1,  // a LAPACK routine gave up
  singular = 2,       // a_i + b_j is rounding
  negative = 3,       // "pos" with a clearly negative eigenvalue
  no_memory = 4,
  overflow = 5,  // the solution is too large for the floating-point range
};

struct Outcome {
  Status status = Status::ok;
  double residual = 0;                                          // relative, see relative_residual
  double separation = std::numeric_limits<double>::infinity();  // min |a_i + b_j| / (|a| + |b|)
  Complex a = 0, b = 0;   // the pair that attains it, or the negative eigenvalue
  long long dropped = 0;  // pairs set to zero
};

// Frobenius norm.
template <class S>
double norm(std::ptrdiff_t size, const S* x) {
  double sum = 0;
  for (std::ptrdiff_t i = 0; i < size; ++i) sum += std::norm(x[i]);
  if (sum > 1e-280 && sum < 1e280) return std::sqrt(sum);
  double largest = 0;  // squares may have over- or underflown
  for (std::ptrdiff_t i = 0; i < size; ++i) largest = std::fmax(largest, std::abs(x[i]));
  if (!(largest > 0) || !std::isfinite(largest)) return std::isnan(sum) ? sum : largest;
  sum = 0;
  for (std::ptrdiff_t i = 0; i < size; ++i) sum += std::norm(x[i] / largest);
  return largest * std::sqrt(sum);
}

// defect = C - op(L) Y - Y op(R); returns |defect| / ((|L| + |R|) |Y| + |C|).
template <class S>
double relative_residual(bool adjoint, int m, int n, const S* left, const S* right, double norms,
                         const S* c, const S* y, S* defect) {
  const char op = adjoint ? 'C' : 'N';
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(m) * n;
  for (std::ptrdiff_t i = 0; i < size; ++i) defect[i] = c[i];
  gemm(op, 'N', m, n, m, S(-1), left, m, y, m, S(1), defect, m);
  gemm('N', op, m, n, n, S(-1), y, m, right, n, S(1), defect, m);
  const double scale = norms * norm(size, y) + norm(size, c);
  const double error = norm(size, defect);
  return error == 0 ? 0 : error / scale;
}

}  // namespace sylvinit
