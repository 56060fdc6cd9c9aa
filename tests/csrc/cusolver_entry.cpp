// csrc/cuda/cusolver.cpp for ctypes. Each function returns the text of the error, or "".
//
// With FAKE_RUNTIME the functions of the CUDA runtime that it uses are here as well, for
// machines without CUDA: then cuSOLVER has to be tests/csrc/fake_cusolver.cpp.
#undef dlopen  // see open_candidate
#include <dlfcn.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cusolver.h"

using sylvinit::SymmetricEigen;

#ifdef FAKE_RUNTIME
extern "C" {
thread_local int current_device = 0;
cudaError_t cudaSetDevice(int device) {
  if (device != 0 && device != 1) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "no such device"; }

// What cusolver.cpp calls in place of dlopen (-Ddlopen=open_candidate): a torch with CUDA has
// loaded the real library, which is not the one to be found here.
void* open_candidate(const char* path, int mode) {
  return mode & RTLD_NOLOAD ? nullptr : dlopen(path, mode);
}
}
#endif

namespace {

thread_local std::string text;

template <class Work>
const char* text_of(const Work& work) {
  text.clear();
  try {
    work();
  } catch (const std::invalid_argument& error) {
    text = std::string("invalid argument: ") + error.what();
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace

extern "C" {

const char* soname() {
  return text_of([] { throw std::runtime_error(sylvinit::cusolver_soname()); });
}

// Candidates are lines; found becomes major, minor, patch and whether XsyevBatched is there.
const char* open_library(const char* candidates, int* found) {
  return text_of([&] {
    std::istringstream lines(candidates);
    std::vector<std::string> paths;
    for (std::string line; std::getline(lines, line);) paths.push_back(line);
    const sylvinit::CusolverLibrary& library = sylvinit::open_cusolver(paths);
    found[0] = library.major;
    found[1] = library.minor;
    found[2] = library.patch;
    found[3] = library.xsyev_batched;
  });
}

const char* workspace(const char* routine, int device, std::uintptr_t stream, std::int64_t n,
                      std::int64_t batch, std::size_t* bytes) {
  return text_of([&] {
    SymmetricEigen problem{};
    problem.routine = sylvinit::eigen_routine(routine);
    problem.device = device;
    problem.stream = reinterpret_cast<cudaStream_t>(stream);
    problem.n = n;
    problem.batch = batch;
    *bytes = sylvinit::symmetric_eigen_workspace(problem);
  });
}

const char* decompose(const char* routine, int device, std::uintptr_t stream, std::int64_t n,
                      std::int64_t batch, double* a, double* values, int* info, void* workspace,
                      std::size_t bytes) {
  return text_of([&] {
    sylvinit::symmetric_eigen({sylvinit::eigen_routine(routine), device,
                               reinterpret_cast<cudaStream_t>(stream), n, batch, a, values, info,
                               workspace, bytes});
  });
}

}  // extern "C"
