// Batches of small real symmetric equations: kLanes at once, an equation in every lane.
//
// What a lane finds clear is solved there. Equations for which anything has to be judged (spectra
// that nearly meet, semi-definite matrices, numbers near the ends of the range, an iteration that
// takes long) are left to hermitian.h, so that there is one rule for them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "batch.h"
#include "hermitian.h"
#include "lanes.h"
#include "regular.h"

namespace sylvinit {

// Sizes up to which lanes are faster than LAPACK.
constexpr int kSmall = 48;

struct SmallProblem {
  int k, d;  // k <= d <= kSmall
  long long count;
  const double *a, *b, *q;  // row-major
  double* x;
  double eps;
  bool positive;

  // Lanes beyond the end repeat the last equation.
  long long index(long long i) const { return i < count ? i : count - 1; }
};

// What Workspace of small_equation.h holds.
constexpr int workspace_packs(int k, int d) { return 3 * k * (k + 1) + d * (2 * d + 5 + 5 * k); }

struct SmallOutcome {
  bool solved;
  double residual;
};

#ifdef SYLVINIT_LANES
#if defined(__x86_64__)
#define SYLVINIT_DISPATCH
#endif

// A lane is clear where the spectra are this many thresholds of the zero rule apart.
constexpr double kClear = 4;
// Squares and quotients of numbers down to this neither under- nor overflow.
constexpr double kTiny = 1e-50;
// Largest relative residual of a lane that counts as solved, after refinement.
constexpr double kSolved = 1e-13;

#ifdef SYLVINIT_DISPATCH
namespace avx512 {
#define SYLVINIT_TARGET __attribute__((target("avx512f,avx512dq,avx2")))
constexpr int kLanes = 8;
using Pack = PackOf<kLanes>::Pack;
using Mask = PackOf<kLanes>::Mask;
#include "small_kernel.h"
//
#include "small_equation.h"
#undef SYLVINIT_TARGET
}  // namespace avx512
namespace avx2 {
#define SYLVINIT_TARGET __attribute__((target("avx2")))
constexpr int kLanes = 4;
using Pack = PackOf<kLanes>::Pack;
using Mask = PackOf<kLanes>::Mask;
#include "small_kernel.h"
//
#include "small_equation.h"
#undef SYLVINIT_TARGET
}  // namespace avx2
namespace avx2_one {
#define SYLVINIT_TARGET __attribute__((target("avx2")))
constexpr int kLanes = 1;
using Pack = PackOf<kLanes>::Pack;
using Mask = PackOf<kLanes>::Mask;
#include "small_kernel.h"
//
#include "small_equation.h"
#undef SYLVINIT_TARGET
}  // namespace avx2_one
#endif
namespace baseline {
#define SYLVINIT_TARGET
constexpr int kLanes = 2;
using Pack = PackOf<kLanes>::Pack;
using Mask = PackOf<kLanes>::Mask;
#include "small_kernel.h"
//
#include "small_equation.h"
#undef SYLVINIT_TARGET
}  // namespace baseline
namespace baseline_one {
#define SYLVINIT_TARGET
constexpr int kLanes = 1;
using Pack = PackOf<kLanes>::Pack;
using Mask = PackOf<kLanes>::Mask;
#include "small_kernel.h"
//
#include "small_equation.h"
#undef SYLVINIT_TARGET
}  // namespace baseline_one

using SolveLanes = void (*)(const SmallProblem&, long long, void*, SmallOutcome*);

// For the instruction set that this processor has.
struct Kernels {
  int lanes;
  SolveLanes many, one;
};

inline Kernels choose_kernels() {
#ifdef SYLVINIT_DISPATCH
  if (__builtin_cpu_supports("avx2")) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
      return {avx512::kLanes, avx512::solve_lanes, avx2_one::solve_lanes};
    return {avx2::kLanes, avx2::solve_lanes, avx2_one::solve_lanes};
  }
#endif
  return {baseline::kLanes, baseline::solve_lanes, baseline_one::solve_lanes};
}

// Solves what is clear, and returns false with nothing promised if an equation is not regular (see
// regular.h). `left` takes the indices of the others, ascending, `residual` the largest one.
inline bool solve_small(const SmallProblem& p, int threads, std::vector<long long>* left,
                        double* residual) {
  static const Kernels kernels = choose_kernels();
  constexpr int kMost = 8;
  constexpr std::size_t kAlignment = 64;
  const long long kk = static_cast<long long>(p.k) * p.k, dd = static_cast<long long>(p.d) * p.d,
                  kd = static_cast<long long>(p.k) * p.d;
  const std::size_t bytes = static_cast<std::size_t>(workspace_packs(p.k, p.d)) * sizeof(double) *
                            (p.count > 1 ? kernels.lanes : 1);
  std::vector<double> found(p.count, std::numeric_limits<double>::quiet_NaN());
  std::atomic<long long> next{0};
  std::atomic<bool> regular{true};
  for_each_problem(threads, threads, [&](long long) {
    void* memory = ::operator new(bytes, std::align_val_t(kAlignment), std::nothrow);
    if (memory == nullptr) return;  // what nobody takes is left
    while (regular) {
      const long long start = next.fetch_add(kernels.lanes);
      if (start >= p.count) break;
      const int width = static_cast<int>(std::min<long long>(kernels.lanes, p.count - start));
      for (long long i = start; i < start + width; ++i) {
        if (!is_regular(p.k, p.d, p.a + i * kk, p.b + i * dd, p.q + i * kd)) regular = false;
      }
      if (!regular) break;
      SmallOutcome outcomes[kMost];
      (width > 1 ? kernels.many : kernels.one)(p, start, memory, outcomes);
      for (int w = 0; w < width; ++w) {
        if (outcomes[w].solved) found[start + w] = outcomes[w].residual;
      }
    }
    ::operator delete(memory, std::align_val_t(kAlignment));
  });
  *residual = 0;
  for (long long i = 0; i < p.count; ++i) {
    if (found[i] != found[i]) left->push_back(i);
    *residual = std::max(*residual, found[i] == found[i] ? found[i] : 0.0);
  }
  return regular;
}
#endif

}  // namespace sylvinit
