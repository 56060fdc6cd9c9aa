// L Y + Y R = C for Hermitian L (m x m) and R (n x n), m >= n: an eigendecomposition of R and only
// tridiagonal form of L (the symmetric case of G. H. Golub, S. Nash and C. Van Loan, "A
// Hessenberg-Schur method for the problem AX + XB = C", 1979).
//
// With R = V diag(r) V^H and L = H T H^H: column j of F = H^H C V solves (T + r_j I) y_j = f_j, and
// Y = H [y_1 ... y_n] V^H.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "lapack.h"
#include "problem.h"
#include "reflectors.h"
#include "tridiagonal.h"

namespace sylvinit {

// Relative residual above which one step of iterative refinement is tried.
constexpr double kRefineAbove = 1e-15;
// "pos" takes eigenvalues down to -kNegative * size * eps * (largest one) for rounding.
constexpr double kNegative = 10;

template <class S>
constexpr int kParts = sizeof(S) / sizeof(double);

// Rows of the `core` of a tridiagonal form, each of length m: diagonal, off-diagonal, then tau.
template <class S>
constexpr int kCoreRows = 2 + kParts<S>;

template <class S>
int tridiagonal_form(int m, S* matrix, double* core) {
  return reduce_to_tridiagonal(m, matrix, core, core + m, reinterpret_cast<S*>(core + 2 * m));
}

template <class S>
class HermitianEquation {
 public:
  // positive: the zero rule; otherwise colliding spectra are an error.
  HermitianEquation(int m, int n, const S* left, const S* reflectors, const double* core,
                    const S* right, const S* vectors, const double* values, double eps,
                    bool positive)
      : m_(m),
        n_(n),
        left_(left),
        reflectors_(reflectors),
        tau_(reinterpret_cast<const S*>(core + 2 * static_cast<std::ptrdiff_t>(m))),
        right_(right),
        vectors_(vectors),
        core_(core, core + 2 * static_cast<std::ptrdiff_t>(m)),
        values_(values, values + n),
        unit_(scale_to_one()),
        t_(m, core_.data(), core_.data() + m),
        positive_(positive),
        definite_(positive),
        eps_(eps) {
    left_size_ = spectral_radius(t_);
    right_size_ = std::max(std::abs(values_[0]), std::abs(values_[n - 1]));
    rounding_ = std::max(m, n) * eps;
    threshold_ = rounding_ * (left_size_ + right_size_);
    if (positive) {
      // What counts is r_0 + t_0 beside the threshold; t_0 alone need not be known any better.
      const double r = values_[0], far = 2 * threshold_;
      left_low_ = eigenvalue(t_, 0, [&](const Interval& i) {
                    return (i.low + r > far && i.width() <= 0.05 * (i.low + r)) ||
                           i.width() <= 0.1 * threshold_;
                  }).low;
    }
    if (!positive) {
      // Where the smallest sum of eigenvalues is clear of zero, "sym" is as easy as "pos".
      double x[kPack];
      int below[kPack];
      std::fill(x, x + kPack, 2 * threshold_ - values_[0]);
      count_below(t_, x, below);
      definite_ = below[0] == 0;
      left_low_ = std::numeric_limits<double>::infinity();  // no pair is dropped
    }
    double squares = 0, right_squares = 0;
    for (int i = 0; i < m; ++i) squares += core_[i] * core_[i];
    for (int i = 0; i + 1 < m; ++i) squares += 2 * core_[m + i] * core_[m + i];
    for (int j = 0; j < n; ++j) right_squares += values_[j] * values_[j];
    norms_ = (std::sqrt(squares) + std::sqrt(right_squares)) / unit_;
  }

  // Whether there is a solution, and how far apart the spectra are.
  Outcome examine() {
    Outcome outcome;
    if (!positive_) {
      // Far from all that is judged below, a few percent are near enough.
      const double far = std::max(4 * threshold_, 2 * std::sqrt(eps_) * (left_size_ + right_size_));
      if (definite_) {
        const double r = values_[0];
        const double low = eigenvalue(t_, 0, [&](const Interval& i) {
                             return i.low + r > far && i.width() <= 0.05 * (i.low + r);
                           }).low;
        if (low + r > far) {
          outcome.separation = relative(low + r);
          return outcome;
        }
      }
      Nearest nearest = nearest_to_zero(t_, values_.data(), n_, 0.05);
      if (!(nearest.distance > far)) nearest = nearest_to_zero(t_, values_.data(), n_);
      if (nearest.shift < 0) {  // the decompositions overflowed: every comparison was false
        outcome.status = Status::overflow;
        return outcome;
      }
      outcome.a = values_[nearest.shift] / unit_;
      outcome.b = nearest.value / unit_;
      outcome.separation = relative(nearest.distance);
      if (nearest.distance <= threshold_) outcome.status = Status::singular;
      return outcome;
    }
    double x[kPack];
    int below[kPack];
    std::fill(x, x + kPack, -kNegative * rounding_ * left_size_);
    count_below(t_, x, below);
    if (left_size_ > 0 && below[0] > 0) {
      outcome.status = Status::negative;
      outcome.b = eigenvalue(t_, 0) / unit_;
      return outcome;
    }
    if (values_[0] < -kNegative * rounding_ * right_size_) {
      outcome.status = Status::negative;
      outcome.a = values_[0] / unit_;
      return outcome;
    }
    outcome.a = values_[0] / unit_;
    outcome.b = left_low_ / unit_;
    outcome.separation = relative(values_[0] + left_low_);
    return outcome;
  }

  // y <- the solution for c (both m x n).
  void solve(const S* c, S* y, Outcome* outcome) {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(m_) * n_;
    if (!apply(c, y, outcome)) return;
    std::vector<S> defect(size), correction(size);
    outcome->residual =
        relative_residual(false, m_, n_, left_, right_, norms_, c, y, defect.data());
    if (outcome->dropped == 0 && !(outcome->residual > kRefineAbove)) return;
    Outcome again;
    if (!apply(defect.data(), correction.data(), &again)) return;
    if (outcome->dropped > 0) {
      // Only the part of the defect that belongs to pairs that were kept counts: L^+ projects.
      std::vector<S> zero(size, S(0));
      relative_residual(false, m_, n_, left_, right_, norms_, zero.data(), correction.data(),
                        defect.data());
      const double scale = norms_ * norm(size, y) + norm(size, c);
      const double error = norm(size, defect.data());
      outcome->residual = error == 0 ? 0 : error / scale;
      if (!(outcome->residual > kRefineAbove)) return;
      for (std::ptrdiff_t i = 0; i < size; ++i) y[i] += correction[i];
      return;
    }
    for (std::ptrdiff_t i = 0; i < size; ++i) correction[i] += y[i];
    const double refined = relative_residual(false, m_, n_, left_, right_, norms_, c,
                                             correction.data(), defect.data());
    if (refined < outcome->residual) {
      outcome->residual = refined;
      std::memcpy(static_cast<void*>(y), correction.data(), size * sizeof(S));
    }
  }

 private:
  // Scales T and r by a power of two, so that squares of them neither over- nor underflow, and
  // returns it. Rounding is the same at every scale.
  double scale_to_one() {
    double largest = 0;
    for (const double x : core_) largest = std::max(largest, std::abs(x));
    for (const double x : values_) largest = std::max(largest, std::abs(x));
    if (!(largest > 0) || !std::isfinite(largest)) return 1;
    const int exponent = std::clamp(-std::ilogb(largest), -1000, 1000);
    const double unit = std::ldexp(1.0, exponent);
    for (double& x : core_) x *= unit;
    for (double& x : values_) x *= unit;
    return unit;
  }

  double relative(double distance) const {
    const double size = left_size_ + right_size_;
    return size > 0 ? distance / size : 0;
  }

  bool apply(const S* c, S* y, Outcome* outcome) {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(m_) * n_;
    std::vector<S> f(size);
    gemm('N', 'N', m_, n_, n_, S(1), c, m_, vectors_, n_, S(0), f.data(), m_);
    int info = multiply_by_reflectors(true, m_, n_, reflectors_, tau_, f.data());
    if (info == 0) info = solve_shifted(f.data(), outcome);
    if (info == 0) info = multiply_by_reflectors(false, m_, n_, reflectors_, tau_, f.data());
    if (info != 0) {
      outcome->status = Status::not_converged;
      return false;
    }
    gemm('N', 'C', m_, n_, n_, S(unit_), f.data(), m_, vectors_, n_, S(0), y, m_);
    return true;
  }

  int solve_shifted(S* f, Outcome* outcome) {
    constexpr int parts = kParts<S>;
    double* reals = reinterpret_cast<double*>(f);
    if (!definite_) return solve_indefinite<parts>(t_, values_.data(), n_, reals, m_);
    // The eigenvalues r_j ascend: the zero rule can only touch the first columns.
    int touched = 0;
    while (touched < n_ && values_[touched] + left_low_ <= threshold_) ++touched;
    if (touched > 0) {
      const int info = solve_minimum_norm(touched, f, outcome);
      if (info != 0) return info;
    }
    const std::ptrdiff_t column = static_cast<std::ptrdiff_t>(m_) * parts;
    int done = 0;
    const int rest = n_ - touched;
    if (solve_definite<parts>(t_, values_.data() + touched, rest, reals + touched * column, m_,
                              &done))
      return 0;
    return solve_indefinite<parts>(t_, values_.data() + touched + done, rest - done,
                                   reals + (touched + done) * column, m_);
  }

  // The first `count` columns with all eigenvectors of T: pairs up to the threshold become 0.
  int solve_minimum_norm(int count, S* f, Outcome* outcome) {
    const std::ptrdiff_t square = static_cast<std::ptrdiff_t>(m_) * m_;
    if (z_.empty()) {
      t_values_.assign(t_.diagonal, t_.diagonal + m_);
      std::vector<double> off(t_.off, t_.off + m_);
      std::vector<double> z(square);
      const int info = eigen_tridiagonal(m_, t_values_.data(), off.data(), z.data());
      if (info != 0) return info;
      if constexpr (kParts<S> == 1) {
        z_.swap(z);
      } else {
        z_.assign(z.begin(), z.end());
      }
    }
    std::vector<S> g(static_cast<std::ptrdiff_t>(m_) * count);
    gemm('C', 'N', m_, count, m_, S(1), z_.data(), m_, f, m_, S(0), g.data(), m_);
    double least = values_[std::min(count, n_ - 1)] + left_low_;
    if (count == n_) least = std::numeric_limits<double>::infinity();
    long long dropped = 0;
    for (int j = 0; j < count; ++j) {
      for (int i = 0; i < m_; ++i) {
        const double sum = t_values_[i] + values_[j];
        const bool keep = sum > threshold_;
        S& entry = g[i + static_cast<std::ptrdiff_t>(j) * m_];
        entry = keep ? entry / sum : S(0);
        dropped += !keep;
        if (keep && sum < least) least = sum;
      }
    }
    outcome->dropped = dropped;
    outcome->separation = std::isfinite(least) ? relative(least) : 1.0;
    gemm('N', 'N', m_, count, m_, S(1), z_.data(), m_, g.data(), m_, S(0), f, m_);
    return 0;
  }

  int m_, n_;
  const S* left_;
  const S* reflectors_;
  const S* tau_;
  const S* right_;
  const S* vectors_;
  // Everything about eigenvalues below is in units of 1 / unit_.
  std::vector<double> core_, values_;
  double unit_;
  Tridiagonal t_;
  bool positive_;
  bool definite_;  // T + r_j I is positive (semi-)definite for every j
  double eps_;
  double left_low_ = 0;  // a lower bound of the eigenvalues of L, for the zero rule
  double left_size_, right_size_, rounding_, threshold_, norms_;
  std::vector<S> z_;  // eigenvectors of T, when they were needed
  std::vector<double> t_values_;
};

}  // namespace sylvinit
