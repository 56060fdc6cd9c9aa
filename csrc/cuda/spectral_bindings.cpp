// cuSOLVER and the kernels of spectral.h for Python: addresses in, nothing checked that only the
// tensors know. sylvinit/backends/ does that.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "cusolver.h"
#include "device_guard.h"
#include "errors.h"
#include "spectral.h"

namespace sylvinit {
namespace {

namespace py = pybind11;
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_at(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

// Refuses memory of the host.
void check_address(int device, Address of_an_argument) {
  if (!is_device_pointer(at<const void>(of_an_argument))) {
    throw std::invalid_argument("tensors must be on device " + std::to_string(device) +
                                ", got an address that no kernel can read");
  }
}

py::tuple open_library(const std::vector<std::string>& candidates) {
  const CusolverLibrary* library = nullptr;
  {
    py::gil_scoped_release release;
    library = &open_cusolver(candidates);
  }
  return py::make_tuple(library->path,
                        py::make_tuple(library->major, library->minor, library->patch),
                        library->xsyev_batched);
}

std::size_t workspace(const std::string& routine, int device, Address stream, std::int64_t n,
                      std::int64_t batch) {
  SymmetricEigen problem{};
  problem.routine = eigen_routine(routine);
  problem.device = device;
  problem.stream = stream_at(stream);
  problem.n = n;
  problem.batch = batch;
  py::gil_scoped_release release;
  return symmetric_eigen_workspace(problem);
}

void decompose(const std::string& routine, int device, Address stream, std::int64_t n,
               std::int64_t batch, Address a, Address values, Address info, Address workspace,
               std::size_t workspace_bytes) {
  const SymmetricEigen problem{eigen_routine(routine),
                               device,
                               stream_at(stream),
                               n,
                               batch,
                               at<double>(a),
                               at<double>(values),
                               at<int>(info),
                               at<void>(workspace),
                               workspace_bytes};
  if (n == 0 || batch == 0) return;
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  check_address(device, a);
  symmetric_eigen(problem);
}

void scale(int device, Address stream, std::int64_t batch, std::int64_t entries, Address a,
           Address scaled, Address scale, Address partial) {
  if (batch == 0 || entries == 0) return;
  const DeviceGuard guard(device);
  check_address(device, a);
  scale_to_unit(
      {batch, entries, at<double>(a), at<double>(scaled), at<double>(scale), at<double>(partial)},
      stream_at(stream));
}

void divide(int device, Address stream, std::int64_t batch, std::int64_t k, std::int64_t d,
            Address c, Address a, Address b, Address threshold_a, Address threshold_b, Address y,
            Address keep) {
  if (batch == 0 || k == 0 || d == 0) return;
  const DeviceGuard guard(device);
  check_address(device, c);
  divide_positive(
      {batch, k, d, at<double>(c), at<double>(a), at<double>(b), at<double>(threshold_a),
       at<double>(threshold_b), at<double>(y), at<std::uint8_t>(keep)},
      stream_at(stream));
}

}  // namespace

void bind_spectral(py::module_& m) {
  m.attr("CUSOLVER_SONAME") = cusolver_soname();
  m.def("open_cusolver", &open_library, py::arg("candidates"),
        "(path, (major, minor, patch), whether it has XsyevBatched); opened once.");
  m.def("symmetric_eigen_workspace", &workspace, py::arg("routine"), py::arg("device"),
        py::arg("stream"), py::arg("n"), py::arg("batch"), "Bytes on the device.");
  m.def("symmetric_eigen", &decompose, py::arg("routine"), py::arg("device"), py::arg("stream"),
        py::arg("n"), py::arg("batch"), py::arg("a"), py::arg("values"), py::arg("info"),
        py::arg("workspace"), py::arg("workspace_bytes"),
        "Eigenvectors of float64 (batch, n, n) in place, as rows.");
  m.def("spectral_slices", &spectral_slices, py::arg("entries"),
        "Blocks that share a matrix of that many entries.");
  m.def("scale_to_unit", &scale, py::arg("device"), py::arg("stream"), py::arg("batch"),
        py::arg("entries"), py::arg("a"), py::arg("scaled"), py::arg("scale"), py::arg("partial"),
        "Matrices divided by their largest entry; see csrc/cuda/spectral.h.");
  m.def("divide_positive", &divide, py::arg("device"), py::arg("stream"), py::arg("batch"),
        py::arg("k"), py::arg("d"), py::arg("c"), py::arg("a"), py::arg("b"),
        py::arg("threshold_a"), py::arg("threshold_b"), py::arg("y"), py::arg("keep"),
        "Division by a_i + b_j with the zero rule; see csrc/cuda/spectral.h.");
}

}  // namespace sylvinit
