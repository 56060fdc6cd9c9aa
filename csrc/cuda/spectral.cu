#include <cfloat>
#include <cmath>
#include <limits>

#include "launch.h"

// Blocks of a launch; they take several slices each where there are more. Tests set it to a few.
#ifndef SYLVINIT_SPECTRAL_BLOCKS
#define SYLVINIT_SPECTRAL_BLOCKS (1 << 20)
#endif
#include "spectral.h"

namespace sylvinit {
namespace {

constexpr int kThreads = kSpectralThreads;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kMostBlocks = SYLVINIT_SPECTRAL_BLOCKS;

// NaN wins.
SYLVINIT_HD double larger(double x, double y) { return x > y || x != x ? x : y; }

// The largest value of all threads of the block, for each of them.
__device__ __forceinline__ double largest_of_block(double value, double* shared) {
  const int thread = threadIdx.x;
  __syncthreads();  // an earlier result may still be read
  shared[thread] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] = larger(shared[thread], shared[thread + half]);
    __syncthreads();
  }
  return shared[0];
}

// Slice `index` of `slices` about equal parts of [0, entries).
struct Slice {
  std::int64_t begin, end;
  __device__ Slice(std::int64_t entries, std::int64_t slices, std::int64_t index)
      : begin(entries / slices * index + smaller(index, entries % slices)),
        end(begin + entries / slices + (index < entries % slices ? 1 : 0)) {}

 private:
  static __device__ std::int64_t smaller(std::int64_t x, std::int64_t y) { return x < y ? x : y; }
};

__global__ void __launch_bounds__(kThreads) find_largest(UnitScale p, std::int64_t slices) {
  __shared__ double shared[kThreads];
  for (std::int64_t task = blockIdx.x; task < p.batch * slices; task += gridDim.x) {
    const std::int64_t matrix = task / slices;
    const Slice slice(p.entries, slices, task - matrix * slices);
    const double* a = p.a + matrix * p.entries;
    double largest = 0;
    for (std::int64_t e = slice.begin + threadIdx.x; e < slice.end; e += kThreads) {
      largest = larger(fabs(a[e]), largest);
    }
    largest = largest_of_block(largest, shared);
    if (threadIdx.x == 0) p.partial[task] = largest;
  }
}

__global__ void __launch_bounds__(kThreads) apply_scale(UnitScale p, std::int64_t slices) {
  __shared__ double shared[kThreads];
  for (std::int64_t task = blockIdx.x; task < p.batch * slices; task += gridDim.x) {
    const std::int64_t matrix = task / slices, index = task - matrix * slices;
    double scale = 0;
    for (std::int64_t s = threadIdx.x; s < slices; s += kThreads) {
      scale = larger(p.partial[matrix * slices + s], scale);
    }
    scale = largest_of_block(scale, shared);
    const bool finite = scale <= DBL_MAX;
    if (!finite) scale = kNaN;
    if (scale == 0) scale = 1;
    if (index == 0 && threadIdx.x == 0) p.scale[matrix] = scale;
    const Slice slice(p.entries, slices, index);
    const double* a = p.a + matrix * p.entries;
    double* scaled = p.scaled + matrix * p.entries;
    for (std::int64_t e = slice.begin + threadIdx.x; e < slice.end; e += kThreads) {
      scaled[e] = finite ? a[e] / scale : 0.0;
    }
  }
}

__global__ void __launch_bounds__(kThreads) divide(PositiveDivision p, std::int64_t slices) {
  const std::int64_t entries = p.k * p.d;
  // From one entry of a thread to its next, without a division for each.
  const std::int64_t rows = kThreads / p.d, columns = kThreads % p.d;
  for (std::int64_t task = blockIdx.x; task < p.batch * slices; task += gridDim.x) {
    const std::int64_t matrix = task / slices;
    const Slice slice(entries, slices, task - matrix * slices);
    const double *a = p.a + matrix * p.k, *b = p.b + matrix * p.d;
    const double threshold_a = p.threshold_a[matrix], threshold_b = p.threshold_b[matrix];
    std::int64_t e = slice.begin + threadIdx.x, i = e / p.d, j = e % p.d;
    while (e < slice.end) {
      const double a_i = a[i], b_j = b[j];
      const bool keep = a_i > threshold_a || b_j > threshold_b || a_i != a_i || b_j != b_j;
      const double divisor = (a_i < 0 ? 0 : a_i) + (b_j < 0 ? 0 : b_j);
      const std::int64_t at = matrix * entries + e;
      p.y[at] = keep ? p.c[at] / divisor : 0.0;
      p.keep[at] = keep;
      e += kThreads;
      i += rows;
      j += columns;
      if (j >= p.d) {
        j -= p.d;
        ++i;
      }
    }
  }
}

dim3 grid(std::int64_t tasks) {
  return dim3(static_cast<unsigned>(tasks < kMostBlocks ? tasks : kMostBlocks));
}

}  // namespace

void scale_to_unit(const UnitScale& p, cudaStream_t stream) {
  if (p.batch == 0 || p.entries == 0) return;
  const std::int64_t slices = spectral_slices(p.entries);
  launch("scale_to_unit", find_largest, grid(p.batch * slices), kThreads, stream, p, slices);
  launch("scale_to_unit", apply_scale, grid(p.batch * slices), kThreads, stream, p, slices);
}

void divide_positive(const PositiveDivision& p, cudaStream_t stream) {
  if (p.batch == 0 || p.k == 0 || p.d == 0) return;
  const std::int64_t slices = spectral_slices(p.k * p.d);
  launch("divide_positive", divide, grid(p.batch * slices), kThreads, stream, p, slices);
}

}  // namespace sylvinit
