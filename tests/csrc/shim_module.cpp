// csrc/cuda's patch_gram on host threads as a Python module, with the same bindings as on a GPU.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "patch_gram.h"
#include "patch_gram_reference.h"
#include "tf32.cuh"

namespace py = pybind11;

namespace sylvinit {

bool is_device_pointer(const void*) { return true; }

}  // namespace sylvinit

PYBIND11_MODULE(_cuda_shim, m) {
  using namespace sylvinit;
  bind_patch_gram(m);
  m.def("choose_patch", [](const PatchGram& gram, std::int64_t p) {
    const Patch patch = choose_patch(gram, p);
    return py::make_tuple(patch.entry, patch.position, patch.owner);
  });
  m.def("tile_pair", [](std::int64_t index, int tiles) {
    const TilePair pair = tile_pair(index, tiles);
    return py::make_tuple(pair.row, pair.column);
  });
  m.def("split_begin", &split_begin);
  m.def("split_tf32", [](std::uint32_t bits) {
    float high, low;
    split_tf32(float_of_bits(bits), high, low);
    return py::make_tuple(bits_of_float(high), bits_of_float(low));
  });
  m.def("patch_gram_reference", [](const PatchGram& gram, std::uintptr_t out) {
    patch_gram_reference(gram, reinterpret_cast<double*>(out));
  });
  m.def("patch_mean_reference", [](const PatchGram& gram, std::int64_t count, std::uintptr_t out) {
    patch_mean_reference(gram, count, reinterpret_cast<float*>(out));
  });
}
