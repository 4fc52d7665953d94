// SPDX-License-Identifier: BSD-3-Clause
//
// The Python module ssd_fast._C. Importing it registers the operators: each file in cpu/ and cuda/
// does so for itself, through the LibTorch stable ABI. Here are only the facts of the build.
//
// This file includes no torch header and the operators' files no pybind11: torch 2.11's copy of
// pybind11 refuses to be compiled for a torch target version.
#include <pybind11/pybind11.h>

#include <string>

#include "instruction_set.h"

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

pybind11::tuple instruction_set_names() {
  pybind11::list names;
  for (const auto set : ssd_fast::instruction_sets()) {
    names.append(ssd_fast::kInstructionSetNames[static_cast<int>(set)]);
  }
  return pybind11::tuple(names);
}

std::string instruction_set_name() {
  return ssd_fast::kInstructionSetNames[static_cast<int>(ssd_fast::instruction_set())];
}

void set_instruction_set(const std::string& name) {
  if (ssd_fast::set_instruction_set(name)) return;
  std::string message = "name: expected an instruction set of this machine,";
  for (const auto set : ssd_fast::instruction_sets()) {
    message += std::string(" '") + ssd_fast::kInstructionSetNames[static_cast<int>(set)] + "'";
  }
  throw pybind11::value_error(message + ", got '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  m.attr("source_hash") = SSD_FAST_SOURCE_HASH;
  m.attr("compiler") = kCompiler;
  m.attr("torch_target") = SSD_FAST_TORCH_TARGET;
  m.attr("torch_headers") = SSD_FAST_TORCH_HEADERS;
  m.attr("with_cuda") = !std::string(SSD_FAST_CUDA_VERSION).empty();
  m.attr("cuda_version") = SSD_FAST_CUDA_VERSION;
  m.attr("cuda_architectures") = SSD_FAST_CUDA_ARCHITECTURES;
  m.def("instruction_sets", &instruction_set_names);
  m.def("instruction_set", &instruction_set_name);
  m.def("set_instruction_set", &set_instruction_set, pybind11::arg("name"));
}
