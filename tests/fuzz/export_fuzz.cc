// Files that runtimes are given, as `verify` reads them: the first byte says which runtime, and
// what the rest is.
#include "amct/export/exporter.h"
#include "amct/export/verify.h"

#include <array>
#include <string>

#include "files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace amct;
  if (size == 0) return 0;
  static const bool prepared = [] {
    std::filesystem::create_directory(fuzz::folder() + "/model");
    return true;
  }();
  static_cast<void>(prepared);
  const auto all = runtimes();
  const Runtime& runtime = all[data[0] % all.size()];
  constexpr std::array<const char*, 5> kFiles{
      "config.json", "model.safetensors", "hf_quant_config.json", "quant_model_description.json",
      "model.safetensors.index.json"};
  const std::string_view rest = fuzz::text(data + 1, size - 1);
  std::string path = fuzz::folder() + "/file";
  if (runtime.output == OutputKind::kFile) {
    fuzz::file("file", rest);
  } else {
    // Files one after the other, each after the number of it and its size in two bytes.
    path = fuzz::folder() + "/model";
    for (const char* name : kFiles) fuzz::file(std::string("model/") + name, "{}");
    for (std::string_view from = rest; from.size() >= 3;) {
      const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(from[i]); };
      const std::size_t length =
          std::min<std::size_t>(byte(1) + std::size_t{256} * byte(2), from.size() - 3);
      fuzz::file(std::string("model/") + kFiles[byte(0) % kFiles.size()], from.substr(3, length));
      from.remove_prefix(3 + length);
    }
  }
  fuzz::expect_no_crash([&] { verify_export(path, runtime.name, {}); });
  return 0;
}
