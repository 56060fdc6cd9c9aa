// A stand-in for libcusolver on host memory, which checks how it is called: the eigendecomposition
// is a cyclic Jacobi iteration that reads the lower triangle alone.
//
// FAKE_MAJOR is the version it claims to be, FAKE_BATCHED says whether it has XsyevBatched.
#include <cusolverDn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>
#include <vector>

struct cusolverDnContext {
  cudaStream_t stream = nullptr;
  std::atomic<bool> busy{false};
};
struct cusolverDnParams {};
struct syevjInfo {};

namespace {

std::atomic<int> created{0};
constexpr std::size_t kHostBytes = 48;

// Bytes of device workspace, which the routines fill to their end.
std::size_t device_bytes(std::int64_t n, std::int64_t batch) { return 16 * n * batch + 8; }

void decompose(std::int64_t n, double* a, double* w, int* info) {
  std::vector<double> m(n * n), v(n * n, 0.0);
  for (std::int64_t j = 0; j < n; ++j) {
    v[j * n + j] = 1;
    for (std::int64_t i = j; i < n; ++i) m[j * n + i] = m[i * n + j] = a[j * n + i];
  }
  for (int sweep = 0; sweep < 60; ++sweep) {
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = p + 1; q < n; ++q) {
        if (m[p * n + q] == 0) continue;
        const double theta = 0.5 * std::atan2(2 * m[p * n + q], m[q * n + q] - m[p * n + p]);
        const double c = std::cos(theta), s = std::sin(theta);
        for (std::int64_t i = 0; i < n; ++i) {
          const double x = m[p * n + i], y = m[q * n + i];
          m[p * n + i] = c * x - s * y;
          m[q * n + i] = s * x + c * y;
        }
        for (std::int64_t i = 0; i < n; ++i) {
          const double x = m[i * n + p], y = m[i * n + q], f = v[p * n + i], g = v[q * n + i];
          m[i * n + p] = c * x - s * y;
          m[i * n + q] = s * x + c * y;
          v[p * n + i] = c * f - s * g;
          v[q * n + i] = s * f + c * g;
        }
      }
    }
  }
  std::vector<std::int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::int64_t x, std::int64_t y) { return m[x * n + x] < m[y * n + y]; });
  for (std::int64_t j = 0; j < n; ++j) {
    w[j] = m[order[j] * n + order[j]];
    std::copy_n(&v[order[j] * n], n, a + j * n);
  }
  // Asked for by the test: a matrix whose largest eigenvalue is 13 does not converge.
  *info = std::abs(w[n - 1] - 13) < 1e-9 ? 3 : 0;
}

// Runs work() as the only call of its handle.
template <class Work>
cusolverStatus_t alone(cusolverDnHandle_t handle, const Work& work) {
  if (handle->busy.exchange(true)) return CUSOLVER_STATUS_INTERNAL_ERROR;
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  work();
  handle->busy = false;
  return CUSOLVER_STATUS_SUCCESS;
}

bool wrong(cusolverEigMode_t mode, cublasFillMode_t triangle, std::int64_t n, std::int64_t lda) {
  return mode != CUSOLVER_EIG_MODE_VECTOR || triangle != CUBLAS_FILL_MODE_LOWER || n < 1 ||
         lda != n;
}

}  // namespace

extern "C" {

int fake_handles() { return created; }

cusolverStatus_t cusolverGetProperty(libraryPropertyType type, int* value) {
  *value = type == MAJOR_VERSION ? FAKE_MAJOR : type == MINOR_VERSION ? 7 : 1;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  ++created;
  *handle = new cusolverDnContext;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  if (handle->stream != nullptr && handle->stream != stream) return CUSOLVER_STATUS_INTERNAL_ERROR;
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}

#ifndef FAKE_INCOMPLETE
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params) {
  *params = new cusolverDnParams;
  return CUSOLVER_STATUS_SUCCESS;
}
#endif

cusolverStatus_t cusolverDnCreateSyevjInfo(syevjInfo_t* info) {
  *info = new syevjInfo;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t, cusolverDnParams_t,
                                             cusolverEigMode_t mode, cublasFillMode_t triangle,
                                             int64_t n, cudaDataType of_a, const void*, int64_t lda,
                                             cudaDataType of_w, const void*, cudaDataType compute,
                                             size_t* device, size_t* host) {
  if (wrong(mode, triangle, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  if (of_a != CUDA_R_64F || of_w != CUDA_R_64F || compute != CUDA_R_64F) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *device = device_bytes(n, 1);
  *host = kHostBytes;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t,
                                  cusolverEigMode_t mode, cublasFillMode_t triangle, int64_t n,
                                  cudaDataType, void* a, int64_t lda, cudaDataType, void* w,
                                  cudaDataType, void* device, size_t device_size, void* host,
                                  size_t host_size, int* info) {
  if (wrong(mode, triangle, n, lda) || device_size != device_bytes(n, 1) ||
      host_size != kHostBytes) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return alone(handle, [&] {
    std::fill_n(static_cast<char*>(device), device_size, 1);
    std::fill_n(static_cast<char*>(host), host_size, 1);
    decompose(n, static_cast<double*>(a), static_cast<double*>(w), info);
  });
}

cusolverStatus_t cusolverDnXsyevdx_bufferSize(cusolverDnHandle_t, cusolverDnParams_t,
                                              cusolverEigMode_t mode, cusolverEigRange_t range,
                                              cublasFillMode_t triangle, int64_t n,
                                              cudaDataType of_a, const void*, int64_t lda, void*,
                                              void*, int64_t il, int64_t iu, int64_t* found,
                                              cudaDataType of_w, const void*, cudaDataType compute,
                                              size_t* device, size_t* host) {
  if (wrong(mode, triangle, n, lda) || range != CUSOLVER_EIG_RANGE_I || il < 1 || iu != n) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  if (of_a != CUDA_R_64F || of_w != CUDA_R_64F || compute != CUDA_R_64F) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *found = iu - il + 1;
  *device = device_bytes(n, 1);
  *host = kHostBytes;
  return CUSOLVER_STATUS_SUCCESS;
}

// Of the other eigenvalues and columns nothing is left that could be taken for one.
cusolverStatus_t cusolverDnXsyevdx(cusolverDnHandle_t handle, cusolverDnParams_t,
                                   cusolverEigMode_t mode, cusolverEigRange_t range,
                                   cublasFillMode_t triangle, int64_t n, cudaDataType, void* a,
                                   int64_t lda, void*, void*, int64_t il, int64_t iu,
                                   int64_t* found, cudaDataType, void* w, cudaDataType,
                                   void* device, size_t device_size, void* host, size_t host_size,
                                   int* info) {
  if (wrong(mode, triangle, n, lda) || range != CUSOLVER_EIG_RANGE_I || il < 1 || iu != n ||
      device_size != device_bytes(n, 1) || host_size != kHostBytes) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return alone(handle, [&] {
    std::fill_n(static_cast<char*>(device), device_size, 1);
    std::fill_n(static_cast<char*>(host), host_size, 1);
    auto *vectors = static_cast<double*>(a), *values = static_cast<double*>(w);
    decompose(n, vectors, values, info);
    const int64_t below = il - 1, wanted = n - below;
    std::copy(values + below, values + n, values);
    std::copy(vectors + below * n, vectors + n * n, vectors);
    std::fill(values + wanted, values + n, std::nan(""));
    std::fill(vectors + wanted * n, vectors + n * n, std::nan(""));
    // Asked for by the test: one is missing where the largest eigenvalue is 17.
    *found = wanted - (std::abs(values[wanted - 1] - 17) < 1e-9);
  });
}

#if FAKE_BATCHED
cusolverStatus_t cusolverDnXsyevBatched_bufferSize(
    cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t mode, cublasFillMode_t triangle,
    int64_t n, cudaDataType of_a, const void*, int64_t lda, cudaDataType of_w, const void*,
    cudaDataType compute, size_t* device, size_t* host, int64_t batch) {
  if (wrong(mode, triangle, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  if (of_a != CUDA_R_64F || of_w != CUDA_R_64F || compute != CUDA_R_64F) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *device = device_bytes(n, batch);
  *host = kHostBytes;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t,
                                        cusolverEigMode_t mode, cublasFillMode_t triangle,
                                        int64_t n, cudaDataType, void* a, int64_t lda, cudaDataType,
                                        void* w, cudaDataType, void* device, size_t device_size,
                                        void* host, size_t host_size, int* info, int64_t batch) {
  if (wrong(mode, triangle, n, lda) || device_size != device_bytes(n, batch) ||
      host_size != kHostBytes) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return alone(handle, [&] {
    std::fill_n(static_cast<char*>(device), device_size, 1);
    std::fill_n(static_cast<char*>(host), host_size, 1);
    for (int64_t i = 0; i < batch; ++i) {
      decompose(n, static_cast<double*>(a) + i * n * n, static_cast<double*>(w) + i * n, info + i);
    }
  });
}
#endif

cusolverStatus_t cusolverDnDsyevjBatched_bufferSize(cusolverDnHandle_t, cusolverEigMode_t mode,
                                                    cublasFillMode_t triangle, int n, const double*,
                                                    int lda, const double*, int* doubles,
                                                    syevjInfo_t, int batch) {
  if (wrong(mode, triangle, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
  *doubles = static_cast<int>(device_bytes(n, batch) / sizeof(double));
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDsyevjBatched(cusolverDnHandle_t handle, cusolverEigMode_t mode,
                                         cublasFillMode_t triangle, int n, double* a, int lda,
                                         double* w, double* work, int doubles, int* info,
                                         syevjInfo_t, int batch) {
  if (wrong(mode, triangle, n, lda) || doubles * sizeof(double) != device_bytes(n, batch)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return alone(handle, [&] {
    std::fill_n(work, doubles, 1.0);
    for (int i = 0; i < batch; ++i) decompose(n, a + i * n * n, w + i * n, info + i);
  });
}

}  // extern "C"
