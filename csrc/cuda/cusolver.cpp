#include "cusolver.h"

#include <cusolverDn.h>
#include <dlfcn.h>

#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "device_guard.h"
#include "errors.h"

namespace sylvinit {
namespace {

// Written out because headers older than the library may lack them.
using XsyevBatchedBufferSize = cusolverStatus_t(cusolverDnHandle_t, cusolverDnParams_t,
                                                cusolverEigMode_t, cublasFillMode_t, std::int64_t,
                                                cudaDataType, const void*, std::int64_t,
                                                cudaDataType, const void*, cudaDataType,
                                                std::size_t*, std::size_t*, std::int64_t);
using XsyevBatched = cusolverStatus_t(cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t,
                                      cublasFillMode_t, std::int64_t, cudaDataType, void*,
                                      std::int64_t, cudaDataType, void*, cudaDataType, void*,
                                      std::size_t, void*, std::size_t, int*, std::int64_t);
#if CUSOLVER_VERSION >= 11701
static_assert(std::is_same_v<decltype(cusolverDnXsyevBatched_bufferSize), XsyevBatchedBufferSize>);
static_assert(std::is_same_v<decltype(cusolverDnXsyevBatched), XsyevBatched>);
#endif

struct Functions {
  decltype(&cusolverGetProperty) get_property;
  decltype(&cusolverDnCreate) create;
  decltype(&cusolverDnSetStream) set_stream;
  decltype(&cusolverDnCreateParams) create_params;
  decltype(&cusolverDnCreateSyevjInfo) create_jacobi;
  decltype(&cusolverDnXsyevd_bufferSize) xsyevd_size;
  decltype(&cusolverDnXsyevd) xsyevd;
  decltype(&cusolverDnDsyevjBatched_bufferSize) jacobi_size;
  decltype(&cusolverDnDsyevjBatched) jacobi;
  XsyevBatchedBufferSize* batched_size;  // may be null, and so may the next
  XsyevBatched* batched;
};

struct Opened {
  CusolverLibrary library;
  Functions call;
};

template <class F>
void look_up(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
}

template <class F>
void require(void* library, const char* name, F* function) {
  look_up(library, name, function);
  if (*function == nullptr) throw std::runtime_error(std::string("it has no function ") + name);
}

int property(const Functions& call, libraryPropertyType type) {
  int value = 0;
  if (call.get_property(type, &value) != CUSOLVER_STATUS_SUCCESS) {
    throw std::runtime_error("it does not tell its version");
  }
  return value;
}

Opened examine(void* library, const std::string& path) {
  Functions f{};
  require(library, "cusolverGetProperty", &f.get_property);
  const CusolverLibrary found{path, property(f, MAJOR_VERSION), property(f, MINOR_VERSION),
                              property(f, PATCH_LEVEL), false};
  if (found.major != CUSOLVER_VER_MAJOR) {
    throw std::runtime_error("it is version " + std::to_string(found.major) + "." +
                             std::to_string(found.minor) + ", but sylvinit was built for " +
                             std::to_string(CUSOLVER_VER_MAJOR) + ".x");
  }
  require(library, "cusolverDnCreate", &f.create);
  require(library, "cusolverDnSetStream", &f.set_stream);
  require(library, "cusolverDnCreateParams", &f.create_params);
  require(library, "cusolverDnCreateSyevjInfo", &f.create_jacobi);
  require(library, "cusolverDnXsyevd_bufferSize", &f.xsyevd_size);
  require(library, "cusolverDnXsyevd", &f.xsyevd);
  require(library, "cusolverDnDsyevjBatched_bufferSize", &f.jacobi_size);
  require(library, "cusolverDnDsyevjBatched", &f.jacobi);
  look_up(library, "cusolverDnXsyevBatched_bufferSize", &f.batched_size);
  look_up(library, "cusolverDnXsyevBatched", &f.batched);
  Opened opened{found, f};
  opened.library.xsyev_batched = f.batched_size != nullptr && f.batched != nullptr;
  return opened;
}

// The opened library, never closed: at exit the driver may be gone before it.
struct Shared {
  std::mutex mutex;
  std::unique_ptr<Opened> opened;
};
Shared& shared() {
  static Shared* const instance = new Shared;
  return *instance;
}

const Functions& functions() {
  Shared& all = shared();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (!all.opened) throw std::runtime_error("cuSOLVER has not been opened");
  return all.opened->call;
}

const char* name_of(cusolverStatus_t status) {
  switch (status) {
    case CUSOLVER_STATUS_NOT_INITIALIZED:
      return "CUSOLVER_STATUS_NOT_INITIALIZED (no usable driver or GPU)";
    case CUSOLVER_STATUS_ALLOC_FAILED:
      return "CUSOLVER_STATUS_ALLOC_FAILED (out of memory)";
    case CUSOLVER_STATUS_INVALID_VALUE:
      return "CUSOLVER_STATUS_INVALID_VALUE (a size it does not take)";
    case CUSOLVER_STATUS_ARCH_MISMATCH:
      return "CUSOLVER_STATUS_ARCH_MISMATCH (a GPU without float64)";
    case CUSOLVER_STATUS_EXECUTION_FAILED:
      return "CUSOLVER_STATUS_EXECUTION_FAILED";
    case CUSOLVER_STATUS_INTERNAL_ERROR:
      return "CUSOLVER_STATUS_INTERNAL_ERROR";
    default:
      return "an error";
  }
}

void check(cusolverStatus_t status, const char* function) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string(function) + " returned " + name_of(status) + ", status " +
                           std::to_string(static_cast<int>(status)));
}

// cuSOLVER's state for one stream of one device. A handle owns memory that its calls use in turn,
// so that calls on two streams must not share one. Never destroyed, like the library.
struct Handle {
  std::mutex mutex;
  cusolverDnHandle_t dense = nullptr;
  cusolverDnParams_t params = nullptr;
  syevjInfo_t jacobi = nullptr;
};

Handle& handle_for(int device, cudaStream_t stream) {
  static std::mutex* const mutex = new std::mutex;
  static auto* const handles = new std::map<std::pair<int, cudaStream_t>, std::unique_ptr<Handle>>;
  const std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<Handle>& handle = (*handles)[{device, stream}];
  if (!handle) handle = std::make_unique<Handle>();
  return *handle;
}

// A handle that this thread alone uses, on its stream.
class Session {
 public:
  explicit Session(const SymmetricEigen& p)
      : call(functions()),
        device_(p.device),
        handle_(handle_for(p.device, p.stream)),
        lock_(handle_.mutex) {
    if (handle_.dense == nullptr) {
      check(call.create(&handle_.dense), "cusolverDnCreate");
    }
    if (handle_.params == nullptr) {
      check(call.create_params(&handle_.params), "cusolverDnCreateParams");
    }
    if (handle_.jacobi == nullptr) {
      check(call.create_jacobi(&handle_.jacobi), "cusolverDnCreateSyevjInfo");
    }
    check(call.set_stream(handle_.dense, p.stream), "cusolverDnSetStream");
  }

  const Functions& call;
  cusolverDnHandle_t dense() const { return handle_.dense; }
  cusolverDnParams_t params() const { return handle_.params; }
  syevjInfo_t jacobi() const { return handle_.jacobi; }

 private:
  DeviceGuard device_;
  Handle& handle_;
  std::lock_guard<std::mutex> lock_;
};

constexpr cusolverEigMode_t kVectors = CUSOLVER_EIG_MODE_VECTOR;
// Lower in column-major order, upper in row-major order.
constexpr cublasFillMode_t kTriangle = CUBLAS_FILL_MODE_LOWER;

struct Bytes {
  std::size_t device = 0, host = 0;
};

int as_int(std::int64_t value, const char* name) {
  if (value > std::numeric_limits<int>::max()) {
    throw std::invalid_argument(std::string(name) + " must be below 2^31 for syevj_batched, got " +
                                std::to_string(value));
  }
  return static_cast<int>(value);
}

void check_sizes(const SymmetricEigen& p) {
  if (p.n < 0 || p.batch < 0) {
    throw std::invalid_argument("sizes must not be negative, got n = " + std::to_string(p.n) +
                                " and batch = " + std::to_string(p.batch));
  }
}

Bytes workspace(const Session& s, const SymmetricEigen& p) {
  Bytes bytes;
  switch (p.routine) {
    case EigenRoutine::xsyevd:
      check(s.call.xsyevd_size(s.dense(), s.params(), kVectors, kTriangle, p.n, CUDA_R_64F, p.a,
                               p.n, CUDA_R_64F, p.values, CUDA_R_64F, &bytes.device, &bytes.host),
            "cusolverDnXsyevd_bufferSize");
      break;
    case EigenRoutine::xsyev_batched:
      if (s.call.batched_size == nullptr || s.call.batched == nullptr) {
        throw std::runtime_error("this cuSOLVER has no cusolverDnXsyevBatched (11.7.1 has)");
      }
      check(s.call.batched_size(s.dense(), s.params(), kVectors, kTriangle, p.n, CUDA_R_64F, p.a,
                                p.n, CUDA_R_64F, p.values, CUDA_R_64F, &bytes.device, &bytes.host,
                                p.batch),
            "cusolverDnXsyevBatched_bufferSize");
      break;
    case EigenRoutine::syevj_batched: {
      int doubles = 0;
      const int n = as_int(p.n, "n"), batch = as_int(p.batch, "batch");
      check(s.call.jacobi_size(s.dense(), kVectors, kTriangle, n, p.a, n, p.values, &doubles,
                               s.jacobi(), batch),
            "cusolverDnDsyevjBatched_bufferSize");
      bytes.device = static_cast<std::size_t>(doubles) * sizeof(double);
      break;
    }
  }
  return bytes;
}

}  // namespace

EigenRoutine eigen_routine(const std::string& name) {
  if (name == "xsyevd") return EigenRoutine::xsyevd;
  if (name == "xsyev_batched") return EigenRoutine::xsyev_batched;
  if (name == "syevj_batched") return EigenRoutine::syevj_batched;
  throw std::invalid_argument("routine must be xsyevd, xsyev_batched or syevj_batched, got " +
                              name);
}

std::string cusolver_soname() { return "libcusolver.so." + std::to_string(CUSOLVER_VER_MAJOR); }

const CusolverLibrary& open_cusolver(const std::vector<std::string>& candidates) {
  Shared& all = shared();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.opened) return all.opened->library;
  std::string tried;
  auto attempt = [&](const std::string& path, int flags, bool quiet) {
    void* const library = dlopen(path.c_str(), flags);
    if (library == nullptr) {
      const char* const reason = dlerror();
      if (!quiet) tried += "\n  " + std::string(reason == nullptr ? path : reason);
      return false;
    }
    try {
      all.opened = std::make_unique<Opened>(examine(library, path));
      return true;
    } catch (const std::runtime_error& error) {
      tried += "\n  " + path + ": " + error.what();
      return false;
    }
  };
  // torch's own first: two copies of a library of 100 MB would be loaded otherwise.
  if (attempt(cusolver_soname(), RTLD_NOW | RTLD_NOLOAD, true)) return all.opened->library;
  for (const std::string& path : candidates) {
    if (attempt(path, RTLD_NOW | RTLD_LOCAL, false)) return all.opened->library;
  }
  throw std::runtime_error("cuSOLVER (" + cusolver_soname() +
                           ") cannot be opened; tried:" + (tried.empty() ? " nothing" : tried));
}

std::size_t symmetric_eigen_workspace(const SymmetricEigen& problem) {
  check_sizes(problem);
  if (problem.n == 0 || problem.batch == 0) return 0;
  return workspace(Session(problem), problem).device;
}

void symmetric_eigen(const SymmetricEigen& problem) {
  const SymmetricEigen& p = problem;
  check_sizes(p);
  if (p.n == 0 || p.batch == 0) return;
  const Session s(p);
  const Bytes bytes = workspace(s, p);
  if (p.workspace_bytes < bytes.device) {
    throw std::invalid_argument("the workspace has " + std::to_string(p.workspace_bytes) +
                                " bytes, but " + std::to_string(bytes.device) + " are needed");
  }
  const std::unique_ptr<char[]> host(bytes.host == 0 ? nullptr : new char[bytes.host]);
  switch (p.routine) {
    case EigenRoutine::xsyevd:
      for (std::int64_t i = 0; i < p.batch; ++i) {
        check(s.call.xsyevd(s.dense(), s.params(), kVectors, kTriangle, p.n, CUDA_R_64F,
                            p.a + i * p.n * p.n, p.n, CUDA_R_64F, p.values + i * p.n, CUDA_R_64F,
                            p.workspace, bytes.device, host.get(), bytes.host, p.info + i),
              "cusolverDnXsyevd");
      }
      break;
    case EigenRoutine::xsyev_batched:
      check(s.call.batched(s.dense(), s.params(), kVectors, kTriangle, p.n, CUDA_R_64F, p.a, p.n,
                           CUDA_R_64F, p.values, CUDA_R_64F, p.workspace, bytes.device, host.get(),
                           bytes.host, p.info, p.batch),
            "cusolverDnXsyevBatched");
      break;
    case EigenRoutine::syevj_batched: {
      const int n = static_cast<int>(p.n), batch = static_cast<int>(p.batch);
      check(
          s.call.jacobi(s.dense(), kVectors, kTriangle, n, p.a, n, p.values,
                        static_cast<double*>(p.workspace),
                        static_cast<int>(bytes.device / sizeof(double)), p.info, s.jacobi(), batch),
          "cusolverDnDsyevjBatched");
      break;
    }
  }
}

}  // namespace sylvinit
