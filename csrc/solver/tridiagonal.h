// Real symmetric tridiagonal T: eigenvalue counts, single eigenvalues, and shifted solves.
//
// Counts use the Sturm sequence of W. Barth, R. S. Martin and J. H. Wilkinson, "Calculation of the
// eigenvalues of a symmetric tridiagonal matrix by the method of bisection" (1967): the negative
// pivots of T - x I are as many as the eigenvalues below x. Several x are advanced together, since
// one alone waits for a division in every row.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "lapack.h"
#include "vectorize.h"

namespace sylvinit {

struct Tridiagonal {
  int n;
  const double* diagonal;  // n
  const double* off;       // n - 1
  double norm;             // largest absolute row sum: no eigenvalue is larger in modulus
  double least;            // pivots are kept this far from zero, as in LAPACK's dstebz

  Tridiagonal(int n, const double* diagonal, const double* off)
      : n(n), diagonal(diagonal), off(off), norm(0) {
    for (int i = 0; i < n; ++i) {
      const double left = i > 0 ? std::abs(off[i - 1]) : 0.0;
      const double right = i + 1 < n ? std::abs(off[i]) : 0.0;
      norm = std::max(norm, std::abs(diagonal[i]) + left + right);
    }
    least = std::numeric_limits<double>::min() * std::max(1.0, norm * norm);
  }

  // An interval that holds every eigenvalue is [-bound(), bound()].
  double bound() const { return norm * (1 + 4e-16 * n) + std::numeric_limits<double>::min(); }
};

constexpr int kPack = 8;

// below[w] = number of eigenvalues smaller than x[w].
SYLVINIT_VECTORIZED inline void count_below(const Tridiagonal& t, const double* x, int* below) {
  const double least = t.least;
  double pivot[kPack], negative[kPack];
  for (int w = 0; w < kPack; ++w) {
    pivot[w] = t.diagonal[0] - x[w];
    pivot[w] = std::abs(pivot[w]) < least ? -least : pivot[w];
    negative[w] = pivot[w] < 0 ? 1.0 : 0.0;
  }
  for (int i = 1; i < t.n; ++i) {
    const double square = t.off[i - 1] * t.off[i - 1];
    for (int w = 0; w < kPack; ++w) {
      double next = t.diagonal[i] - x[w] - square / pivot[w];
      next = std::abs(next) < least ? -least : next;
      negative[w] += next < 0 ? 1.0 : 0.0;
      pivot[w] = next;
    }
  }
  for (int w = 0; w < kPack; ++w) below[w] = static_cast<int>(negative[w]);
}

// An interval that holds eigenvalue number `index` (from 0, ascending).
struct Interval {
  double low, high;
  double middle() const { return 0.5 * (low + high); }
  double width() const { return high - low; }
};

// Narrows the interval until `enough` says so or there are no numbers left in between.
template <class Enough>
Interval eigenvalue(const Tridiagonal& t, int index, const Enough& enough) {
  if (t.norm == 0) return {0, 0};
  Interval at{-t.bound(), t.bound()};
  double x[kPack];
  int below[kPack];
  while (!enough(at)) {
    const double step = at.width() / (kPack + 1);
    for (int w = 0; w < kPack; ++w) x[w] = at.low + step * (w + 1);
    if (!(x[0] > at.low && x[kPack - 1] < at.high)) break;
    count_below(t, x, below);
    Interval next = at;
    for (int w = 0; w < kPack; ++w) {
      if (below[w] <= index) next.low = x[w];
    }
    for (int w = kPack - 1; w >= 0; --w) {
      if (below[w] > index) next.high = x[w];
    }
    if (!(next.high >= next.low)) break;
    at = next;
  }
  return at;
}

// To what bisection can determine it.
inline double eigenvalue(const Tridiagonal& t, int index) {
  const double accuracy = std::numeric_limits<double>::epsilon() * t.norm;
  return eigenvalue(t, index, [&](const Interval& i) { return i.width() <= accuracy; }).middle();
}

// Largest modulus of an eigenvalue, to a few percent.
inline double spectral_radius(const Tridiagonal& t) {
  if (t.norm == 0) return 0;
  auto enough = [](const Interval& i) {
    return i.width() <= 0.05 * std::max(std::abs(i.low), std::abs(i.high));
  };
  const double high = eigenvalue(t, t.n - 1, enough).middle();
  // Positive semi-definite matrices need no search at the other end.
  double x[kPack];
  int below[kPack];
  std::fill(x, x + kPack, -std::abs(high));
  count_below(t, x, below);
  if (below[0] == 0) return std::abs(high);
  return std::max(std::abs(high), std::abs(eigenvalue(t, 0, enough).middle()));
}

struct Nearest {
  double distance = std::numeric_limits<double>::infinity();
  int shift = -1;    // index j of the shift
  int index = -1;    // index i of the eigenvalue of T
  double value = 0;  // t_i
};

// min over i, j of |t_i + s_j|, at most the fraction `slack` above it. A shift costs two counts
// unless it improves on those before it; they are visited in a scattered order, so that few do.
inline Nearest nearest_to_zero(const Tridiagonal& t, const double* shifts, int count,
                               double slack = 0) {
  Nearest best;
  if (t.n == 0 || count == 0) return best;
  auto refine = [&](int j) {
    const double x = -shifts[j];
    double points[kPack];
    int below[kPack];
    std::fill(points, points + kPack, x);
    count_below(t, points, below);
    for (const int index : {below[0] - 1, below[0]}) {
      if (index < 0 || index >= t.n) continue;
      const double accuracy = std::numeric_limits<double>::epsilon() * t.norm;
      const Interval found = eigenvalue(t, index, [&](const Interval& i) {
        const double least = std::max({i.low - x, x - i.high, 0.0});
        return i.width() <= std::max(accuracy, slack * least);
      });
      const double value = slack == 0                       ? found.middle()
                           : found.high - x > x - found.low ? found.high
                                                            : found.low;
      if (std::abs(value - x) < best.distance) best = {std::abs(value - x), j, index, value};
    }
  };
  int stride = static_cast<int>(count * 0.6180339887) | 1;
  while (std::gcd(stride, count) != 1) stride += 2;
  refine(0);
  constexpr int kShifts = kPack / 2;
  for (int first = 1; first < count; first += kShifts) {
    double points[kPack];
    int below[kPack], which[kShifts];
    for (int w = 0; w < kShifts; ++w) {
      const long long visit = std::min(first + w, count - 1);
      which[w] = static_cast<int>(visit * stride % count);
      points[2 * w] = -shifts[which[w]] - best.distance;
      points[2 * w + 1] = -shifts[which[w]] + best.distance;
    }
    count_below(t, points, below);
    for (int w = 0; w < kShifts; ++w) {
      if (below[2 * w + 1] > below[2 * w]) refine(which[w]);
    }
  }
  return best;
}

// (T + s_j I) y_j = f_j without pivoting, for T + s_j I positive definite: f (n x count, leading
// dimension ld) becomes y. `parts` is 2 for complex right sides, stored as pairs. Returns false if
// a pivot was not positive; f is then unchanged from that pack on, and `done` says how many columns
// were solved.
template <int parts>
bool solve_definite(const Tridiagonal& t, const double* shifts, int count, double* f, int ld,
                    int* done) {
  const int n = t.n;
  std::vector<double> ratio(static_cast<std::size_t>(n) * kPack);
  std::vector<double> inverse(static_cast<std::size_t>(n) * kPack);
  std::vector<double> y(static_cast<std::size_t>(n) * kPack * parts);
  const std::ptrdiff_t column = static_cast<std::ptrdiff_t>(ld) * parts;
  for (*done = 0; *done < count; *done += kPack) {
    const int first = *done, width = std::min(kPack, count - first);
    double shift[kPack], pivot[kPack], positive = std::numeric_limits<double>::infinity();
    for (int w = 0; w < kPack; ++w) shift[w] = shifts[first + std::min(w, width - 1)];
    for (int w = 0; w < kPack; ++w) {
      const double* source = f + (first + std::min(w, width - 1)) * column;
      for (int i = 0; i < n; ++i)
        for (int p = 0; p < parts; ++p) y[(i * parts + p) * kPack + w] = source[i * parts + p];
    }
    for (int w = 0; w < kPack; ++w) {
      pivot[w] = t.diagonal[0] + shift[w];
      positive = std::min(positive, pivot[w]);
      inverse[w] = 1 / pivot[w];
    }
    for (int i = 1; i < n; ++i) {
      const double e = t.off[i - 1];
      const double* before = inverse.data() + (i - 1) * kPack;
      double* at = inverse.data() + i * kPack;
      double* l = ratio.data() + i * kPack;
      for (int w = 0; w < kPack; ++w) {
        l[w] = e * before[w];
        pivot[w] = t.diagonal[i] + shift[w] - l[w] * e;
        at[w] = 1 / pivot[w];
      }
      for (int w = 0; w < kPack; ++w) positive = pivot[w] < positive ? pivot[w] : positive;
      for (int p = 0; p < parts; ++p) {
        const double* up = y.data() + ((i - 1) * parts + p) * kPack;
        double* here = y.data() + (i * parts + p) * kPack;
        for (int w = 0; w < kPack; ++w) here[w] -= l[w] * up[w];
      }
    }
    if (!(positive > 0)) return false;
    for (int i = n - 1; i >= 0; --i) {
      const double* d = inverse.data() + i * kPack;
      for (int p = 0; p < parts; ++p) {
        double* here = y.data() + (i * parts + p) * kPack;
        for (int w = 0; w < kPack; ++w) here[w] *= d[w];
        if (i + 1 < n) {
          const double* l = ratio.data() + (i + 1) * kPack;
          const double* down = y.data() + ((i + 1) * parts + p) * kPack;
          for (int w = 0; w < kPack; ++w) here[w] -= l[w] * down[w];
        }
      }
    }
    for (int w = 0; w < width; ++w) {
      double* target = f + (first + w) * column;
      for (int i = 0; i < n; ++i)
        for (int p = 0; p < parts; ++p) target[i * parts + p] = y[(i * parts + p) * kPack + w];
    }
  }
  *done = count;
  return true;
}

// The same with partial pivoting, for any nonsingular T + s_j I. Returns LAPACK's info.
template <int parts>
int solve_indefinite(const Tridiagonal& t, const double* shifts, int count, double* f, int ld) {
  const int n = t.n, columns = parts;
  std::vector<double> lower(n), diagonal(n), upper(n), y(static_cast<std::size_t>(n) * parts);
  for (int j = 0; j < count; ++j) {
    double* column = f + static_cast<std::ptrdiff_t>(j) * ld * parts;
    for (int i = 0; i < n; ++i) {
      diagonal[i] = t.diagonal[i] + shifts[j];
      if (i + 1 < n) lower[i] = upper[i] = t.off[i];
      for (int p = 0; p < parts; ++p)
        y[static_cast<std::size_t>(p) * n + i] = column[i * parts + p];
    }
    int info = 0;
    lapack.dgtsv(&n, &columns, lower.data(), diagonal.data(), upper.data(), y.data(), &n, &info);
    if (info != 0) return info;
    for (int i = 0; i < n; ++i)
      for (int p = 0; p < parts; ++p)
        column[i * parts + p] = y[static_cast<std::size_t>(p) * n + i];
  }
  return 0;
}

}  // namespace sylvinit
