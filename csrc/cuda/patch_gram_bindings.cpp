// patch_gram for Python: addresses, sizes and a stream in; the caller keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "patch_gram.h"
#include "patch_sums.h"

namespace py = pybind11;

namespace sylvinit {

namespace {

using Three = std::array<std::int64_t, kAxes>;

// A kernel that was handed an address of host memory would end the CUDA context.
void check_device_pointer(const void* pointer, const char* name) {
  if (pointer != nullptr && !is_device_pointer(pointer)) {
    throw std::invalid_argument(std::string("patch_gram: ") + name +
                                " must be on a CUDA device, got an address in host memory");
  }
}

void check_pointers(const PatchGram& gram) {
  check_device_pointer(gram.x, "x");
  check_device_pointer(gram.entry, "entry");
  check_device_pointer(gram.position, "position");
  check_device_pointer(gram.shift, "shift");
  check_device_pointer(gram.labels, "labels");
  check_device_pointer(gram.order, "order");
  check_device_pointer(gram.starts, "starts");
  check_device_pointer(gram.code, "code");
  check_device_pointer(gram.status, "status");
}

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A property of PatchGram that is an address in Python.
template <auto kMember>
void bind_address(py::class_<PatchGram>& bound, const char* name) {
  bound.def_property(
      name, [](const PatchGram& gram) { return reinterpret_cast<std::uintptr_t>(gram.*kMember); },
      [](PatchGram& gram, std::uintptr_t address) {
        gram.*kMember = reinterpret_cast<std::remove_reference_t<decltype(gram.*kMember)>>(address);
      });
}

void set_axes(PatchGram& gram, const Three& in_size, const Three& out_size, const Three& kernel,
              const Three& stride, const Three& dilation, const Three& pad_before,
              const Three& axis_stride, int padding_mode, bool transposed) {
  for (int a = 0; a < kAxes; ++a) {
    gram.axis[a] = {in_size[a], stride[a], dilation[a], pad_before[a], padding_mode, transposed};
    gram.axis_stride[a] = axis_stride[a];
    gram.kernel[a] = kernel[a];
    gram.out_size[a] = out_size[a];
  }
}

void run(const PatchGram& gram, const PatchGramPlan& plan, int arithmetic, std::uintptr_t gram_out,
         std::uintptr_t workspace, std::uintptr_t stream) {
  check_pointers(gram);
  check_device_pointer(pointer<void>(gram_out), "gram");
  check_device_pointer(pointer<void>(workspace), "workspace");
  patch_gram(gram, plan, static_cast<Arithmetic>(arithmetic), pointer<double>(gram_out),
             pointer<double>(workspace), reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace

void bind_patch_gram(py::module_& m) {
  // Local: the tests bind the same types in a module of their own.
  py::class_<PatchGram> bound(m, "PatchGram", py::module_local(),
                              "Arguments of patch_gram, see csrc/cuda/patch_gram.h");
  bound.def(py::init<>())
      .def_readwrite("element_type", &PatchGram::element_type)
      .def_readwrite("groups", &PatchGram::groups)
      .def_readwrite("channels", &PatchGram::channels)
      .def_readwrite("entry_stride", &PatchGram::entry_stride)
      .def_readwrite("channel_stride", &PatchGram::channel_stride)
      .def_readwrite("tap_major", &PatchGram::tap_major)
      .def_readwrite("n", &PatchGram::n)
      .def_readwrite("entries", &PatchGram::entries)
      .def_readwrite("entries_per_sample", &PatchGram::entries_per_sample)
      .def_readwrite("first_sample", &PatchGram::first_sample)
      .def_readwrite("draws", &PatchGram::draws)
      .def_readwrite("key0", &PatchGram::key0)
      .def_readwrite("key1", &PatchGram::key1)
      .def_readwrite("classes", &PatchGram::classes)
      .def_readwrite("codes", &PatchGram::codes)
      .def_readwrite("first_row", &PatchGram::first_row)
      .def_readwrite("rows", &PatchGram::rows)
      .def_readwrite("code_stride", &PatchGram::code_stride)
      .def("set_axes", &set_axes, py::kw_only(), py::arg("in_size"), py::arg("out_size"),
           py::arg("kernel"), py::arg("stride"), py::arg("dilation"), py::arg("pad_before"),
           py::arg("axis_stride"), py::arg("padding_mode"), py::arg("transposed"));
  bind_address<&PatchGram::x>(bound, "x");
  bind_address<&PatchGram::entry>(bound, "entry");
  bind_address<&PatchGram::position>(bound, "position");
  bind_address<&PatchGram::shift>(bound, "shift");
  bind_address<&PatchGram::labels>(bound, "labels");
  bind_address<&PatchGram::order>(bound, "order");
  bind_address<&PatchGram::starts>(bound, "starts");
  bind_address<&PatchGram::code>(bound, "code");
  bind_address<&PatchGram::status>(bound, "status");

  py::class_<PatchGramPlan>(m, "PatchGramPlan", py::module_local())
      .def_readonly("tile", &PatchGramPlan::tile)
      .def_readonly("splits", &PatchGramPlan::splits)
      .def_readonly("pairs", &PatchGramPlan::pairs)
      .def_property_readonly("gathered",
                             [](const PatchGramPlan& plan) { return plan.rows.patches; })
      .def_readonly("workspace", &PatchGramPlan::workspace);

  m.attr("MAX_TAP_SLOTS") = kMaxTapSlots;
  m.attr("LABEL_OUT_OF_RANGE") = kLabelOutOfRange;
  m.def(
      "plan_patch_gram",
      [](const PatchGram& gram, int arithmetic, int multiprocessors, int tile) {
        return plan_patch_gram(gram, static_cast<Arithmetic>(arithmetic), multiprocessors, tile);
      },
      py::arg("gram"), py::arg("arithmetic"), py::arg("multiprocessors"), py::arg("tile") = 0);
  m.def("patch_gram", &run, py::arg("gram"), py::arg("plan"), py::arg("arithmetic"),
        py::arg("gram_out"), py::arg("workspace"), py::arg("stream"));
  m.def(
      "patch_mean",
      [](const PatchGram& gram, std::int64_t count, std::uintptr_t mean, std::uintptr_t workspace,
         std::uintptr_t stream) {
        check_pointers(gram);
        check_device_pointer(pointer<void>(mean), "mean");
        check_device_pointer(pointer<void>(workspace), "workspace");
        patch_mean(gram, count, pointer<float>(mean), pointer<double>(workspace),
                   reinterpret_cast<cudaStream_t>(stream));
      },
      py::arg("gram"), py::arg("count"), py::arg("mean"), py::arg("workspace"), py::arg("stream"));
  m.def(
      "patch_mean_workspace",
      [](const PatchGram& gram, std::int64_t count) {
        return sums_for_mean(gram, count).workspace;
      },
      py::arg("gram"), py::arg("count"));
}

}  // namespace sylvinit
