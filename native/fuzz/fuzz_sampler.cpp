// Any logits, ids and settings: a token of those given, or an error in words; the same from the
// best candidates as from the whole row where the header promises that.
#include <cmath>
#include <stdexcept>

#include "hearth/sampler.h"
#include "input.h"

using namespace hearth;

namespace {

void candidates_agree(const std::vector<float>& logits, size_t count, const SamplerConfig& config,
                      uint32_t whole) {
  std::vector<float> best(count);
  std::vector<uint32_t> ids(count);
  best_candidates(logits, count, 0, best.data(), ids.data());
  Sampler again(config);
  fuzz::demand(again.sample(best, ids) == whole, "candidates give the token of the whole row");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  SamplerConfig config{.temperature = in.upto(3) ? in.real() : 0.0f,
                       .top_k = static_cast<uint32_t>(in.number(20)),
                       .top_p = in.upto(1) ? 1.0f : in.real(),
                       .min_p = in.upto(1) ? 0.0f : in.real(),
                       .repetition_penalty = in.upto(1) ? 1.0f : in.real(),
                       .seed = in.take<uint64_t>()};
  const std::vector<float> logits = in.reals(in.upto(64));
  const size_t with_ids = in.upto(3);
  std::vector<uint32_t> ids;
  if (with_ids == 1) {
    ids.resize(in.upto(7) ? logits.size() : in.upto(66));
    for (uint32_t& id : ids) id = static_cast<uint32_t>(in.number(100));
  }
  try {
    Sampler sampler(config);
    for (size_t seen = in.upto(8); seen > 0; --seen)
      sampler.accept(static_cast<uint32_t>(in.number(70)));
    const size_t draws = 1 + in.upto(2);
    for (size_t draw = 0; draw < draws; ++draw) {
      const uint32_t token = sampler.sample(logits, ids);
      if (ids.empty()) {
        fuzz::demand(token < logits.size(), "a token of the row");
        fuzz::demand(!std::isnan(logits[token]), "not-a-number is never chosen");
      } else {
        fuzz::demand(std::find(ids.begin(), ids.end(), token) != ids.end(), "one of the ids");
      }
      sampler.accept(token);
      const size_t kept = config.temperature == 0.0f ? 1 : config.top_k;
      if (draw == 0 && ids.empty() && config.repetition_penalty == 1.0f && kept > 0 &&
          kept <= logits.size())
        candidates_agree(logits, kept, config, token);
    }
  } catch (const std::invalid_argument& error) {
    fuzz::demand(error.what()[0] != '\0', "an error has words");
  } catch (const std::runtime_error& error) {  // nothing can be sampled
    fuzz::demand(error.what()[0] != '\0', "an error has words");
  }

  const size_t count = in.number(20);
  std::vector<float> best(std::min<size_t>(count, logits.size()));
  std::vector<uint32_t> best_ids(best.size());
  const uint32_t first = in.take<uint32_t>();
  try {
    best_candidates(logits, count, first, best.data(), best_ids.data());
    fuzz::demand(count >= 1 && count <= logits.size(), "as many candidates as there are");
    for (size_t i = 0; i < count; ++i) {
      fuzz::demand(best_ids[i] - first < logits.size(), "candidates are of the row");
      fuzz::demand(i == 0 || best[i] <= best[i - 1], "better first");
    }
  } catch (const std::invalid_argument&) {
    fuzz::demand(count == 0 || count > logits.size(), "a count that can be is not refused");
  }
  return 0;
}
