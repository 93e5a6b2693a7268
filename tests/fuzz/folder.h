// A folder of files as one input: each after the number of its name and its size in two bytes. Of a
// safetensors file stand the header, a NUL and the data; its length is put before it here, else
// hardly anything would come behind that. Where the number is 128 or more, it is the file itself.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>

#include "files.h"

namespace amct::fuzz {

inline constexpr std::array<const char*, 9> kFolderFiles{
    "config.json",
    "model.safetensors",
    "hf_quant_config.json",
    "quant_model_description.json",
    "model.safetensors.index.json",
    "kv_cache_factors.safetensors",
    "quant_model_weights.safetensors.index.json",
    "quantization_config.json",
    "consolidated.safetensors"};
inline constexpr std::uint8_t kRaw = 128;
inline constexpr std::size_t kLengthBytes = 8;

inline bool is_wrapped(std::string_view name, std::uint8_t number) {
  return name.ends_with(".safetensors") && number < kRaw;
}

/// Fills `folder`, which is emptied before.
inline void unpack(std::string_view input, const std::string& folder) {
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  for (Input from(input); !from.empty();) {
    const auto number = from.number<std::uint8_t>();
    const std::string_view name = kFolderFiles[number % kRaw % kFolderFiles.size()];
    const auto size = from.number<std::uint16_t>();
    std::string content(from.text(size));
    if (is_wrapped(name, number)) {
      const std::uint64_t length = std::min(content.find('\0'), content.size());
      content.erase(static_cast<std::size_t>(length), 1);
      std::string bytes(kLengthBytes, '\0');
      std::memcpy(bytes.data(), &length, kLengthBytes);
      content.insert(0, bytes);
    }
    std::ofstream(folder + "/" + std::string(name), std::ios::binary) << content;
  }
}

/// The input that unpacks to what `folder` holds of these files.
inline std::string pack(const std::string& folder) {
  std::string input;
  for (std::size_t i = 0; i < kFolderFiles.size(); ++i) {
    const std::string path = folder + "/" + kFolderFiles[i];
    if (!std::filesystem::exists(path)) continue;
    std::ifstream file(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(file), {}};
    if (is_wrapped(kFolderFiles[i], 0)) {
      std::uint64_t length = 0;
      std::memcpy(&length, content.data(), kLengthBytes);
      content.erase(0, kLengthBytes);
      content.insert(static_cast<std::size_t>(length), 1, '\0');
    }
    const auto size = static_cast<std::uint16_t>(std::min<std::size_t>(content.size(), 0xFFFF));
    input += static_cast<char>(i);
    input += static_cast<char>(size & 0xFFU);
    input += static_cast<char>(size >> 8U);
    input += content.substr(0, size);
  }
  return input;
}

}  // namespace amct::fuzz
