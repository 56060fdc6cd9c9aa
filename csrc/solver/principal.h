// The leading eigenpairs of a symmetric positive semi-definite matrix from its tridiagonal form
// S = H T H^T, and the rows of a Sylvester equation that follow from them.
//
// With eigenpairs (a_i, z_i) of S, a vector m and sigma_i = copies * a_i, row i of the solution of
//     diag(sigma) W + lam W (S + m m^T) = (copies + lam) diag(a) Z
// is, by Sherman and Morrison,
//     w_i = z_i - c_i y_i,   y_i = (sigma_i I + lam S)^-1 m,   c_i = lam z_i.m / (1 + lam m.y_i).
// T takes the place of S for all of that but the last step, the product with H.
//
// In the dual, S = X X^T stands for X^T X, and g = X m for m. Eigenvectors are X^T z_i / a_i^.5; by
// (sigma I + lam X^T X)^-1 = (I - lam X^T (sigma I + lam X X^T)^-1 X) / sigma the rows are
//     w_i = X^T (z_i / a_i^.5 + lam c_i / sigma_i s_i) - c_i / sigma_i m,
//     s_i = (sigma_i I + lam S)^-1 g,   X w_i = a_i^.5 z_i - c_i s_i.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "lapack.h"
#include "reflectors.h"
#include "tridiagonal.h"

namespace sylvinit {

// Largest eigenvalue, and how many are above relative * largest + absolute.
inline int count_significant(const Tridiagonal& t, double relative, double absolute,
                             double* largest) {
  *largest = eigenvalue(t, t.n - 1);
  double x[kPack];
  int below[kPack];
  std::fill(x, x + kPack, relative * std::max(*largest, 0.0) + absolute);
  count_below(t, x, below);
  return t.n - below[0];
}

// The same from all eigenpairs, by divide and conquer.
inline int leading_of_all(const Tridiagonal& t, int first, int count, double* values, double* z) {
  const int n = t.n;
  std::vector<double> ascending(t.diagonal, t.diagonal + n), off(n);
  std::copy(t.off, t.off + n - 1, off.begin());
  std::vector<double> vectors(static_cast<std::size_t>(n) * n);
  if (const int info = eigen_tridiagonal(n, ascending.data(), off.data(), vectors.data());
      info != 0)
    return info;
  for (int i = 0; i < count; ++i) {
    const std::ptrdiff_t place = n - 1 - first - i;
    values[i] = ascending[place];
    std::copy_n(vectors.data() + place * n, n, z + static_cast<std::ptrdiff_t>(i) * n);
  }
  return 0;
}

// Eigenvalues number [first, first + count), descending, and eigenvectors of T as rows of z.
inline int leading_pairs(const Tridiagonal& t, int first, int count, double* values, double* z) {
  const int n = t.n, low = n - first - count + 1, high = n - first;
  std::vector<double> diagonal(t.diagonal, t.diagonal + n), off(n), ascending(n);
  std::copy(t.off, t.off + n - 1, off.begin());
  std::vector<double> vectors(static_cast<std::size_t>(n) * count), work(18 * n);
  std::vector<int> support(2 * std::max(1, count)), iwork(10 * n);
  const double none = 0;
  const int size = static_cast<int>(work.size()), isize = static_cast<int>(iwork.size());
  int found = 0, info = 0, relatively_robust = 1;
  lapack.dstemr("V", "I", &n, diagonal.data(), off.data(), &none, &none, &low, &high, &found,
                ascending.data(), vectors.data(), &n, &count, support.data(), &relatively_robust,
                work.data(), &size, iwork.data(), &isize, &info);
  // Relatively robust representations give up on some spectra with clusters and many zeros.
  if (info != 0 || found != count) return leading_of_all(t, first, count, values, z);
  for (int i = 0; i < count; ++i) {
    values[i] = ascending[count - 1 - i];
    const double* source = vectors.data() + static_cast<std::ptrdiff_t>(count - 1 - i) * n;
    std::copy(source, source + n, z + static_cast<std::ptrdiff_t>(i) * n);
  }
  return 0;
}

struct RankOneEquation {
  double lam, copies;
  bool dual;
  double square;  // m.m
};

// Where the rows of one matrix go: count of each, z and rows (count x n) in the coordinates of S.
struct PrincipalRows {
  double *values, *z, *rows;
  double* along;      // in the dual, the coefficient of m beside X^T rows
  double* variances;  // w.S w, in the dual |X w|^2
};

// Returns LAPACK's info, or -1 where the shifted systems are not positive definite.
inline int principal_rows(int n, const double* reflectors, const double* core, const double* vector,
                          const RankOneEquation& equation, int first, int count,
                          const PrincipalRows& out) {
  if (count == 0) return 0;
  const Tridiagonal t(n, core, core + n);
  const double* tau = core + 2 * static_cast<std::ptrdiff_t>(n);
  if (const int info = leading_pairs(t, first, count, out.values, out.z); info != 0) return info;
  std::vector<double> turned(vector, vector + n);
  if (const int info = multiply_by_reflectors(true, n, 1, reflectors, tau, turned.data());
      info != 0)
    return info;
  const double lam = equation.lam;
  std::vector<double> scaled(core, core + 2 * static_cast<std::size_t>(n));
  for (double& x : scaled) x *= lam;
  const Tridiagonal of_lam(n, scaled.data(), scaled.data() + n);
  std::vector<double> shifts(count);
  for (int i = 0; i < count; ++i) {
    shifts[i] = equation.copies * out.values[i];
    std::copy(turned.begin(), turned.end(), out.rows + static_cast<std::ptrdiff_t>(i) * n);
  }
  int done = 0;
  if (!solve_definite<1>(of_lam, shifts.data(), count, out.rows, n, &done)) return -1;
  auto dot = [n](const double* x, const double* y) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += x[i] * y[i];
    return sum;
  };
  for (int i = 0; i < count; ++i) {
    const double* z = out.z + static_cast<std::ptrdiff_t>(i) * n;
    double* y = out.rows + static_cast<std::ptrdiff_t>(i) * n;  // becomes the row
    const double a = out.values[i], sigma = shifts[i], root = std::sqrt(a);
    double projection = dot(z, turned.data()), level = dot(turned.data(), y), variance = 0;
    if (equation.dual) {
      projection /= root;
      level = std::max(equation.square - lam * level, 0.0) / sigma;
    }
    const double c = lam * projection / (1 + lam * level);
    if (equation.dual) {
      for (int j = 0; j < n; ++j) {
        const double seen = root * z[j] - c * y[j];
        variance += seen * seen;
        y[j] = z[j] / root + lam * c / sigma * y[j];
      }
      out.along[i] = -c / sigma;
    } else {
      for (int j = 0; j < n; ++j) y[j] = z[j] - c * y[j];
      for (int j = 0; j < n; ++j) {
        const double next = j + 1 < n ? 2 * t.off[j] * y[j + 1] : 0.0;
        variance += y[j] * (t.diagonal[j] * y[j] + next);
      }
      out.along[i] = 0;
    }
    out.variances[i] = variance;
  }
  for (double* rows : {out.z, out.rows}) {
    if (const int info = multiply_by_reflectors(false, n, count, reflectors, tau, rows); info != 0)
      return info;
  }
  return 0;
}

}  // namespace sylvinit
