// Choosing tokens.
#include "hearth/sampler.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "hearth/finite.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

py::tuple best(const Floats& logits, size_t count, uint32_t first_id) {
  if (logits.ndim() != 2) throw std::invalid_argument("best takes [rows, n] logits");
  const size_t rows = logits.shape(0), columns = logits.shape(1);
  if (count == 0 || count > columns) {  // before anything is made that large
    throw std::invalid_argument(std::to_string(count) + " candidates of " +
                                std::to_string(columns) + " logits");
  }
  Floats values({rows, count});
  Ids ids({rows, count});
  const float* row = logits.data();
  float* value = values.mutable_data();
  uint32_t* id = ids.mutable_data();
  {
    const WithoutGil released;
    for (size_t r = 0; r < rows; ++r, row += columns, value += count, id += count)
      best_candidates({row, columns}, count, first_id, value, id);
  }
  return py::make_tuple(values, ids);
}

// One row of candidates of a draw, and for a nucleus the counts of its logits.
py::tuple drawn(const Floats& logits, size_t count, uint32_t first_id, float temperature,
                uint64_t seed, uint64_t number, bool nucleus) {
  if (logits.ndim() != 1) throw std::invalid_argument("drawn takes [n] logits");
  const auto columns = static_cast<size_t>(logits.size());
  if (count == 0 || count > columns) {  // before anything is made that large
    throw std::invalid_argument(std::to_string(count) + " candidates of " +
                                std::to_string(columns) + " logits");
  }
  Floats values(static_cast<py::ssize_t>(count));
  Ids ids(static_cast<py::ssize_t>(count));
  Ids counts(static_cast<py::ssize_t>(nucleus ? kLogitSteps : 0));
  const std::span<const float> row(logits.data(), columns);
  const Draw draw{temperature, seed, number};
  float* value = values.mutable_data();
  uint32_t* id = ids.mutable_data();
  uint32_t* of_steps = counts.mutable_data();
  {
    const WithoutGil released;
    if (nucleus)
      nucleus_candidates(row, draw, count, first_id, value, id, of_steps);
    else
      drawn_candidates(row, draw, count, first_id, value, id);
  }
  return py::make_tuple(values, ids, counts);
}

Floats masked(const Floats& logits, const py::array_t<uint8_t, py::array::c_style>& allowed,
              float value, size_t first_id) {
  if (logits.ndim() != 1 || allowed.ndim() != 1)
    throw std::invalid_argument("masked takes [n] logits, and [m] bytes with a bit for each token");
  const auto count = static_cast<size_t>(logits.size());
  const size_t bits = static_cast<size_t>(allowed.size()) * 8;
  if (count > bits || first_id > bits - count) {
    throw std::invalid_argument(std::to_string(count) + " logits from token " +
                                std::to_string(first_id) + " on, and bits of " +
                                std::to_string(bits) + " tokens");
  }
  Floats made(logits.size());
  const std::span<const float> row(logits.data(), count);
  const uint8_t* flags = allowed.data();
  float* out = made.mutable_data();
  const WithoutGil released;
  masked_logits(row, flags, first_id, value, out);
  return made;
}

std::vector<size_t> not_finite_rows(const Floats& values) {
  if (values.ndim() != 2) throw std::invalid_argument("not_finite_rows takes [rows, n] values");
  const size_t rows = values.shape(0), columns = values.shape(1);
  const float* row = values.data();
  std::vector<size_t> found;
  const WithoutGil released;
  for (size_t r = 0; r < rows; ++r, row += columns) {
    if (!all_finite(row, columns)) found.push_back(r);
  }
  return found;
}

}  // namespace

void bind_sampler(py::module_& module) {
  using namespace py::literals;
  module.def("best", &best, "logits"_a, "count"_a, "first_id"_a,
             "The best of each row: f32 [rows, count] and u32 [rows, count] ids.");
  module.def("drawn", &drawn, "logits"_a, "count"_a, "first_id"_a, "temperature"_a, "seed"_a,
             "number"_a, "nucleus"_a = false,
             "The tokens of f32 [n] logits that a draw may choose: f32 [count], u32 [count] ids; "
             "and of a nucleus the counts of the logits, u32 [LOGIT_STEPS], else [0].");
  module.attr("NUCLEUS_TOKENS") = kNucleusTokens;
  module.attr("LOGIT_STEPS") = kLogitSteps;
  module.def("gumbel_noise", &gumbel_noise, "seed"_a, "number"_a, "token"_a,
             "The noise of a token in a draw.");
  module.def("masked", &masked, "logits"_a, "allowed"_a, "value"_a, "first_id"_a = 0,
             "f32 [n] logits of the tokens from first_id on, with `value` for those whose bit in "
             "`allowed` is 0: u8 [m], the lowest bit of a byte first.");
  module.def("not_finite_rows", &not_finite_rows, "values"_a,
             "The rows of f32 [rows, n] that hold an infinity or NaN.");
  py::class_<Sampler>(module, "Sampler", "Chooses tokens; one for each sequence.")
      .def(
          py::init([](float temperature, uint32_t top_k, float top_p, float min_p,
                      float repetition_penalty, uint64_t seed) {
            return std::make_unique<Sampler>(SamplerConfig{.temperature = temperature,
                                                           .top_k = top_k,
                                                           .top_p = top_p,
                                                           .min_p = min_p,
                                                           .repetition_penalty = repetition_penalty,
                                                           .seed = seed});
          }),
          "temperature"_a = 0.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
          "repetition_penalty"_a = 1.0f, "seed"_a = 0)
      .def(
          "sample",
          [](Sampler& sampler, const Floats& logits, const std::optional<Ids>& ids,
             const std::optional<std::pair<Floats, Ids>>& tails) {
            if (logits.ndim() != 1 || (ids && ids->ndim() != 1))
              throw std::invalid_argument("sample takes [n] logits, and as many ids if any");
            const std::span<const float> row(logits.data(), static_cast<size_t>(logits.size()));
            std::span<const uint32_t> tokens;
            if (ids) tokens = {ids->data(), static_cast<size_t>(ids->size())};
            std::vector<LogitCounts> parts;
            if (tails) {
              const auto& [bests, counts] = *tails;
              if (bests.ndim() != 1 || counts.ndim() != 2 || counts.shape(0) != bests.size() ||
                  counts.shape(1) != static_cast<py::ssize_t>(kLogitSteps)) {
                throw std::invalid_argument("counts of logits are [ranks, " +
                                            std::to_string(kLogitSteps) +
                                            "], with the best logit of each rank");
              }
              for (py::ssize_t i = 0; i < bests.size(); ++i)
                parts.push_back({bests.at(i), {counts.data(i, 0), kLogitSteps}});
            }
            const WithoutGil released;
            return sampler.sample(row, tokens, parts);
          },
          "logits"_a, "ids"_a = py::none(), "tails"_a = py::none(),
          "f32 [n], and u32 [n] ids if not all -> token id. Of top-p over several ranks also each "
          "one's best logit, f32 [ranks], and counts, u32 [ranks, LOGIT_STEPS].")
      .def(
          "draw",
          [](const Sampler& sampler, uint64_t ahead) {
            const Draw draw = sampler.next_draw();
            return py::make_tuple(draw.temperature, draw.seed, draw.number + ahead);
          },
          "ahead"_a = 0, "Temperature, seed and number of a draw, so many after the next.")
      .def("accept", &Sampler::accept, "token"_a, "Counts a token as seen.")
      .def(
          "accept_prompt",
          [](Sampler& sampler, const Ids& tokens) {
            if (tokens.ndim() != 1) throw std::invalid_argument("tokens of a prompt are [n]");
            for (py::ssize_t i = 0; i < tokens.size(); ++i) sampler.accept(tokens.data()[i]);
          },
          "tokens"_a, "Counts the tokens of a prompt as seen: u32 [n].");
}

}  // namespace hearth::bindings
