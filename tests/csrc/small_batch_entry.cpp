// csrc/solver/small_batch.h, exported over arrays for ctypes. Nothing here calls LAPACK.
#include <vector>

#include "small_batch.h"

namespace {

using namespace sylvinit;

// Every kernel that this processor can run.
std::vector<std::pair<int, SolveLanes>> kernels() {
  std::vector<std::pair<int, SolveLanes>> found{{baseline::kLanes, baseline::solve_lanes},
                                                {baseline_one::kLanes, baseline_one::solve_lanes}};
#ifdef SYLVINIT_DISPATCH
  if (__builtin_cpu_supports("avx2")) {
    found.push_back({avx2::kLanes, avx2::solve_lanes});
    found.push_back({avx2_one::kLanes, avx2_one::solve_lanes});
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    found.push_back({avx512::kLanes, avx512::solve_lanes});
#endif
  return found;
}

}  // namespace

extern "C" {

int kernel_count() { return static_cast<int>(kernels().size()); }

// solved[i], and x where it is 1, by the kernel of this number.
void solve_with(int kernel, int k, int d, int count, const double* a, const double* b,
                const double* q, double eps, int positive, double* x, int* solved) {
  const SmallProblem problem{k, d, count, a, b, q, x, eps, positive != 0};
  const auto [lanes, solve] = kernels()[kernel];
  const std::size_t size = sizeof(double) * lanes * workspace_packs(k, d);
  void* memory = ::operator new(size, std::align_val_t(64));
  for (int start = 0; start < count; start += lanes) {
    SmallOutcome outcomes[8];
    solve(problem, start, memory, outcomes);
    for (int w = 0; w < lanes && start + w < count; ++w) solved[start + w] = outcomes[w].solved;
  }
  ::operator delete(memory, std::align_val_t(64));
}

// The number of equations left over, with their indices; -1 where one is not regular.
int solve_small(int k, int d, int count, const double* a, const double* b, const double* q,
                double eps, int positive, int threads, double* x, double* residual, int* indices) {
  std::vector<long long> left;
  const SmallProblem problem{k, d, count, a, b, q, x, eps, positive != 0};
  if (!sylvinit::solve_small(problem, threads, &left, residual)) return -1;
  std::copy(left.begin(), left.end(), indices);
  return static_cast<int>(left.size());
}

}  // extern "C"
