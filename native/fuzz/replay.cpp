// Runs a target on files, and on all files of folders, without a fuzzer: inputs that once failed
// stay tests in every build. Also makes up inputs of its own, so that a target is never untried.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "input.h"

int main(int argc, char** argv) {
  size_t runs = 0;
  const auto run = [&](const std::vector<uint8_t>& bytes) {
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++runs;
  };
  std::mt19937 random(1);
  for (size_t i = 0; i < 300; ++i) {
    std::vector<uint8_t> bytes(random() % 700);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    run(bytes);
  }
  for (int i = 1; i < argc; ++i) {
    namespace fs = std::filesystem;
    if (!fs::exists(argv[i])) {
      std::fprintf(stderr, "replay: there is no %s\n", argv[i]);
      return 1;
    }
    std::vector<fs::path> files;
    if (fs::is_directory(argv[i])) {
      for (const auto& entry : fs::directory_iterator(argv[i])) files.push_back(entry.path());
    } else {
      files.emplace_back(argv[i]);
    }
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) {
      std::ifstream stream(file, std::ios::binary);
      run({std::istreambuf_iterator<char>(stream), {}});
    }
  }
  std::printf("%zu inputs\n", runs);
  return 0;
}
