// L Y + Y R = C for any square L and R from their Schur forms (R. H. Bartels and G. W. Stewart,
// "Solution of the matrix equation AX + XB = C", 1972). The triangular equation is halved until
// LAPACK's unblocked trsyl has little left to do, so that most of the work is in matrix products
// (I. Jonsson and B. Kagstrom, "Recursive blocked algorithms for solving triangular systems",
// 2002).
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "hermitian.h"
#include "lapack.h"
#include "problem.h"

namespace sylvinit {

// Size up to which trsyl is called: 16 and 32 took the same time, 64 a tenth more, 128 half as much
// again (equations of size 64 to 512).
constexpr int kTriangularBlock = 32;

// Where to split a Schur form of size n: not through a 2 x 2 block of a real one.
template <class S>
int split(int n, const S* t, int ld) {
  const int half = n / 2;
  const bool inside = t[half + static_cast<std::ptrdiff_t>(half - 1) * ld] != S(0);
  return inside ? half + 1 : half;
}

// op(L) Y + Y op(R) = C in place; false if the solution would overflow.
template <class S>
bool solve_blocks(bool adjoint, int m, int n, const S* left, int ldl, const S* right, int ldr, S* c,
                  int ldc) {
  if (m == 0 || n == 0) return true;
  if (std::max(m, n) <= kTriangularBlock) {
    double scale = 1;
    solve_triangular(adjoint, m, n, left, ldl, right, ldr, c, ldc, &scale);
    return scale == 1;
  }
  if (m >= n) {
    const int top = split(m, left, ldl), bottom = m - top;
    const S* corner = left + static_cast<std::ptrdiff_t>(top) * ldl;
    const S* lower = corner + top;
    auto first = [&] { return solve_blocks(adjoint, top, n, left, ldl, right, ldr, c, ldc); };
    auto second = [&] {
      return solve_blocks(adjoint, bottom, n, lower, ldl, right, ldr, c + top, ldc);
    };
    if (adjoint) {
      if (!first()) return false;
      gemm('C', 'N', bottom, n, top, S(-1), corner, ldl, c, ldc, S(1), c + top, ldc);
      return second();
    }
    if (!second()) return false;
    gemm('N', 'N', top, n, bottom, S(-1), corner, ldl, c + top, ldc, S(1), c, ldc);
    return first();
  }
  const int head = split(n, right, ldr), tail = n - head;
  const S* corner = right + static_cast<std::ptrdiff_t>(head) * ldr;
  const S* lower = corner + head;
  S* c_tail = c + static_cast<std::ptrdiff_t>(head) * ldc;
  auto first = [&] { return solve_blocks(adjoint, m, head, left, ldl, right, ldr, c, ldc); };
  auto second = [&] { return solve_blocks(adjoint, m, tail, left, ldl, lower, ldr, c_tail, ldc); };
  if (adjoint) {
    if (!second()) return false;
    gemm('N', 'C', m, head, tail, S(-1), c_tail, ldc, corner, ldr, S(1), c, ldc);
    return first();
  }
  if (!first()) return false;
  gemm('N', 'N', m, tail, head, S(-1), c, ldc, corner, ldr, S(1), c_tail, ldc);
  return second();
}

inline void triangular_eigenvalues(int n, const double* t, std::vector<Complex>* values) {
  values->resize(n);
  for (int i = 0; i < n; ++i) {
    const double* at = t + i + static_cast<std::ptrdiff_t>(i) * n;
    if (i + 1 < n && at[1] != 0) {  // LAPACK makes the diagonal of a 2 x 2 block constant
      const double imaginary = std::sqrt(std::abs(at[1])) * std::sqrt(std::abs(at[n]));
      (*values)[i] = {at[0], imaginary};
      (*values)[i + 1] = {at[0], -imaginary};
      ++i;
    } else {
      (*values)[i] = at[0];
    }
  }
}

inline void triangular_eigenvalues(int n, const Complex* t, std::vector<Complex>* values) {
  values->resize(n);
  for (int i = 0; i < n; ++i) (*values)[i] = t[i + static_cast<std::ptrdiff_t>(i) * n];
}

template <class S>
class SchurEquation {
 public:
  SchurEquation(int m, int n, const S* left, const S* z_left, const S* t_left, const S* right,
                const S* z_right, const S* t_right, double eps)
      : m_(m),
        n_(n),
        left_(left),
        right_(right),
        z_left_(z_left),
        z_right_(z_right),
        t_left_(t_left),
        t_right_(t_right),
        eps_(eps) {
    norms_ = norm(static_cast<std::ptrdiff_t>(m) * m, t_left_) +
             norm(static_cast<std::ptrdiff_t>(n) * n, t_right_);
  }

  Outcome examine() const {
    Outcome outcome;
    if (!std::isfinite(norms_)) {
      outcome.status = Status::overflow;
      return outcome;
    }
    std::vector<Complex> l, r;
    triangular_eigenvalues(m_, t_left_, &l);
    triangular_eigenvalues(n_, t_right_, &r);
    double largest = 0;
    for (const auto* values : {&l, &r})
      for (const Complex& x : *values) largest = std::max(largest, std::abs(x));
    // In units of the largest one, so that squares do not over- or underflow.
    const double unit = largest > 0 && std::isfinite(1 / largest) ? 1 / largest : 1.0;
    double least = std::numeric_limits<double>::infinity();
    for (const Complex& b : l) {
      for (const Complex& a : r) {
        const double distance = std::norm(unit * a + unit * b);
        if (distance < least) {
          least = distance;
          outcome.a = a;
          outcome.b = b;
        }
      }
    }
    least = std::abs(outcome.a + outcome.b);
    outcome.separation = norms_ > 0 ? least / norms_ : 0;
    if (least <= std::max(m_, n_) * eps_ * norms_) outcome.status = Status::singular;
    return outcome;
  }

  void solve(bool adjoint, const S* c, S* y, Outcome* outcome) const {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(m_) * n_;
    if (!apply(adjoint, c, y)) {
      outcome->status = Status::overflow;
      std::fill(y, y + size, S(std::numeric_limits<double>::quiet_NaN()));
      return;
    }
    std::vector<S> defect(size), refined(size);
    outcome->residual =
        relative_residual(adjoint, m_, n_, left_, right_, norms_, c, y, defect.data());
    if (!(outcome->residual > kRefineAbove)) return;
    if (!apply(adjoint, defect.data(), refined.data())) return;
    for (std::ptrdiff_t i = 0; i < size; ++i) refined[i] += y[i];
    const double residual =
        relative_residual(adjoint, m_, n_, left_, right_, norms_, c, refined.data(), defect.data());
    if (residual < outcome->residual) {
      outcome->residual = residual;
      std::memcpy(static_cast<void*>(y), refined.data(), size * sizeof(S));
    }
  }

 private:
  bool apply(bool adjoint, const S* c, S* y) const {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(m_) * n_;
    std::vector<S> f(size), g(size);
    gemm('C', 'N', m_, n_, m_, S(1), z_left_, m_, c, m_, S(0), f.data(), m_);
    gemm('N', 'N', m_, n_, n_, S(1), f.data(), m_, z_right_, n_, S(0), g.data(), m_);
    if (!solve_blocks(adjoint, m_, n_, t_left_, m_, t_right_, n_, g.data(), m_)) return false;
    gemm('N', 'N', m_, n_, m_, S(1), z_left_, m_, g.data(), m_, S(0), f.data(), m_);
    gemm('N', 'C', m_, n_, n_, S(1), f.data(), m_, z_right_, n_, S(0), y, m_);
    return true;
  }

  int m_, n_;
  const S* left_;
  const S* right_;
  const S* z_left_;
  const S* z_right_;
  const S* t_left_;
  const S* t_right_;
  double eps_, norms_ = 0;
};

}  // namespace sylvinit
