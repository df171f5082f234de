// The front of a gRPC server.
#include "hearth/front.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

const char* name_of(Refusal cause) {
  switch (cause) {
    case Refusal::not_tls:
      return "not_tls";
    case Refusal::plaintext:
      return "plaintext";
    case Refusal::not_http2:
      return "not_http2";
    case Refusal::silent:
      return "silent";
    case Refusal::handshake:
      return "handshake";
    case Refusal::bytes:
      return "bytes";
    case Refusal::calls:
      return "calls";
    case Refusal::crowded:
      return "crowded";
    case Refusal::full:
      return "full";
  }
  return "";
}

py::list refused(Front& front, double seconds) {
  std::vector<Refused> found;
  {
    const WithoutGil released;
    found = front.refused(seconds);
  }
  py::list list;
  for (const Refused& each : found)
    list.append(py::make_tuple(each.host, each.port, name_of(each.cause)));
  return list;
}

}  // namespace

void bind_front(py::module_& module) {
  using namespace py::literals;
  py::class_<Front, py::smart_holder>(module, "Front", "A bounded front of a gRPC server.")
      .def(py::init([](const std::vector<int>& listeners, uint16_t backend, bool tls,
                       size_t connections, size_t strangers, double silence_seconds,
                       double settle_seconds) {
             FrontConfig config;
             config.listeners = listeners;
             config.backend = backend;
             config.tls = tls;
             config.connections = connections;
             config.strangers = strangers;
             config.silence_seconds = silence_seconds;
             config.settle_seconds = settle_seconds;
             return std::make_unique<Front>(config);
           }),
           py::kw_only(), "listeners"_a, "backend"_a, "tls"_a, "connections"_a, "strangers"_a,
           "silence_seconds"_a, "settle_seconds"_a)
      .def("peer", &Front::peer, "key"_a, py::call_guard<WithoutGil>())
      .def("called", &Front::called, "key"_a, py::call_guard<WithoutGil>())
      .def("admit", &Front::admit, "key"_a, py::kw_only(), "settled"_a,
           py::call_guard<WithoutGil>())
      .def("refused", &refused, "seconds"_a)
      .def("stop_listening", &Front::stop_listening, py::call_guard<WithoutGil>())
      .def("close", &Front::close, "seconds"_a, py::call_guard<WithoutGil>())
      .def("counts", &Front::counts, py::call_guard<WithoutGil>());
}

}  // namespace hearth::bindings
